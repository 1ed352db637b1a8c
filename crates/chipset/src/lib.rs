//! The chips of a PC: interrupt controllers, timers, serial port, ACPI registers
