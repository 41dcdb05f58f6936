// The scheduler's one kernel that few batches take. BSD-3-Clause, see LICENSE.
#include "static_switch.h"

#undef BOOL_SWITCH
#define BOOL_SWITCH(CONDITION, NAME, ...)  \
    [&] {                                  \
        constexpr static bool NAME = true; \
        return __VA_ARGS__();              \
    }()
#undef NUM_WARP_SWITCH
#define NUM_WARP_SWITCH(VALUE, NAME, ...) \
    [&] {                                 \
        constexpr static int NAME = 1;    \
        return __VA_ARGS__();             \
    }()
#include "flash_prepare_scheduler.cu"
