#include "kernels/format/tca_bme.h"
