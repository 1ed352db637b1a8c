//! The processor as an arithmetic unit: one vector or x87 instruction on given operands
