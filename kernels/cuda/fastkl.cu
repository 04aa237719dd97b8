// The whole GPU side of fastkl: one unit, one module.
#include "ddim.cu"
#include "ddim_fast.cu"
#include "samplers.cu"
