//! Kernel loaders, the memory map and ACPI tables
