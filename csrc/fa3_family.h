// The family that this library is for, as compile-time constants. BSD-3-Clause, see LICENSE.
//
// Upstream chooses its kernels by the device's compute capability at run time, and sends everything from 9.0 on to the
// Hopper kernels. Here a library holds one family: FA3_ARCH is the template argument that its kernels are compiled
// with, whatever the device says, and FA3_SMEM_LIMIT what a block may ask for on the family's smallest device.
#pragma once

#if !defined(FA3_ARCH) || !defined(FA3_SMEM_LIMIT)
#error "FA3_ARCH and FA3_SMEM_LIMIT must be given on the command line"
#endif

namespace fa3 {

inline constexpr int kArch = FA3_ARCH;
inline constexpr int kSmemLimit = FA3_SMEM_LIMIT;

}  // namespace fa3

// In upstream's place: no branch, so no instantiation of, or reference to, another family's kernels.
#define ARCH_SWITCH(ARCH, ARCH_NAME, ...)              \
    [&] {                                              \
        constexpr static int ARCH_NAME = ::fa3::kArch; \
        return __VA_ARGS__();                          \
    }()
