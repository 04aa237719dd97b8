// The whole GPU side of fastkl: one unit, one module.
#include "ddim.cu"
#include "samplers.cu"
