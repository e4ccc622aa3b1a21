//! Starts a pod's pause program.
