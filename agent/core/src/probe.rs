//! Placeholder until probe::step lands.
