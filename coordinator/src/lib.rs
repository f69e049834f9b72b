//! The coordinator of Toroid.
