// No kernel is launched where it cannot run: the gate in front of every call. BSD-3-Clause, see LICENSE.
//
// FA3_IMAGES is what the library was compiled to, separated by commas: machine code (sm_121, sm_90a) and PTX
// (compute_121). The Python side asks the same question from the build facts; this is for callers that come without it.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "fa3_family.h"

#define FA3_TEXT_(...) #__VA_ARGS__
#define FA3_TEXT(...) FA3_TEXT_(__VA_ARGS__)

#if !defined(FA3_IMAGES)
#error "FA3_IMAGES must be given on the command line, for example sm_120,sm_121,compute_121"
#endif

namespace fa3 {

// The text of an error that is about to be thrown, taken from the runtime: it must not show up again in a later call.
inline char const* taken_error(cudaError_t status) {
    static_cast<void>(cudaGetLastError());
    return cudaGetErrorString(status);
}

// Whether a driver runs this code on a device of that capability: CUDA's rules of binary compatibility.
inline bool image_runs_on(std::string const& image, int major, int minor) {
    bool const ptx = image.rfind("compute_", 0) == 0;
    size_t const first = image.find('_') + 1;
    size_t const last = image.find_first_not_of("0123456789", first);
    int const number = std::stoi(image.substr(first, last - first));
    char const variant = last == std::string::npos ? ' ' : image[last];
    int const image_major = number / 10;
    int const image_minor = number % 10;
    if (variant == 'a') {
        return image_major == major && image_minor == minor;
    }
    if (!ptx || variant == 'f') {
        return image_major == major && image_minor <= minor;
    }
    return number <= major * 10 + minor;
}

// The number of the code that a device of that capability would run: the newest machine code, else PTX; 0 for none.
inline int code_for(int major, int minor) {
    std::string const images = FA3_TEXT(FA3_IMAGES);
    int newest[2] = {0, 0};  // of machine code, of PTX
    for (size_t start = 0; start < images.size();) {
        size_t const end = std::min(images.find(',', start), images.size());
        size_t const word = images.find_first_not_of(' ', start);
        std::string const image = images.substr(word, end - word);
        if (image_runs_on(image, major, minor)) {
            int& number = newest[image.rfind("compute_", 0) == 0];
            number = std::max(number, std::stoi(image.substr(image.find('_') + 1)));
        }
        start = end + 1;
    }
    return newest[0] > 0 ? newest[0] : newest[1];
}

// Why this library cannot serve a device; empty if it can.
inline std::string refusal(int major, int minor, size_t smem_limit) {
    if (code_for(major, minor) == 0) {
        return "it holds code for " FA3_TEXT(FA3_IMAGES) " only";
    }
    if (smem_limit < static_cast<size_t>(kSmemLimit)) {
        return "its kernels may need " + std::to_string(kSmemLimit) +
               " bytes of shared memory a block, the device has " + std::to_string(smem_limit);
    }
    return "";
}

// The properties themselves, if the device may be used; an exception otherwise.
inline cudaDeviceProp* admitted(cudaDeviceProp* device) {
    std::string const why = refusal(device->major, device->minor, device->sharedMemPerBlockOptin);
    if (!why.empty()) {
        throw std::runtime_error("FlashAttention-3: the library " FA3_TEXT(FA3_NAMESPACE) " cannot run on " +
                                 std::string(device->name) + " (" + std::to_string(device->major) + "." +
                                 std::to_string(device->minor) + "): " + why);
    }
    return device;
}

}  // namespace fa3
