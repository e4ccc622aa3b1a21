//! Packet programs at devices.
