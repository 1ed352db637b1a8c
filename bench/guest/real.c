#include "bench.h"
const struct program real_programs[] = {{0}};
