//! Assembles a machine from its description and drives its life
