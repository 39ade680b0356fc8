//! The exit codes of the command. They are part of the interface: scripts rely on them.

/// The command did what it was asked.
pub const OK: u8 = 0;
/// The work failed: a lane broke, the results of two lanes differ, or the output could not be written.
pub const FAILED: u8 = 1;
/// Wrong usage: unknown command or option, a function or items that cannot be used.
pub const USAGE: u8 = 2;
