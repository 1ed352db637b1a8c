//! Engine-parametrised runner, instruction generators and oracles
