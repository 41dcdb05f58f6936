// A CUDA runtime without a GPU: linked to a family library's objects in the real one's place, it answers as a device
// that the driver script describes, refuses what that device would refuse, and writes down every launch.
// Torch's functions that need CUDA are replaced as well, so that CPU tensors go through the CUDA code path.
// BSD-3-Clause, see LICENSE.
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <string>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

struct Device {
    int major, minor, sms, l2, smem_optin;
};

// Function-local statics: registration runs before any namespace-scope object of this file is sure to exist.
std::map<void const*, std::string>& kernels() {
    static std::map<void const*, std::string> names;
    return names;
}
std::map<void const*, int>& smem_allowed() {
    static std::map<void const*, int> allowed;
    return allowed;
}
std::string& launches() {
    static std::string text;
    return text;
}
Device device{12, 1, 48, 24 << 20, 101376};
cudaError_t last = cudaSuccess;
int descriptors = 0;
std::string failing;
cudaError_t injected = cudaSuccess;
void const* elsewhere = nullptr;

struct Configuration {
    dim3 grid, block;
    size_t smem;
    cudaStream_t stream;
} pushed;

cudaError_t ended(char const* call, cudaError_t status) {
    if (failing == call) {
        status = injected;
    }
    if (status != cudaSuccess) {
        last = status;
    }
    return status;
}

// Where launches go that an executor is to carry out: see ci/prove/gb10. It answers with a status.
using Hook = int (*)(char const* kernel, uint32_t const* grid, uint32_t const* block, uint64_t smem, void** arguments);
Hook hook = nullptr;

cudaError_t launch(char const* call, void const* kernel, dim3 grid, dim3 block, size_t smem, void** arguments,
                   dim3 cluster = {1, 1, 1}) {
    cudaError_t status = cudaSuccess;
    uint64_t const threads = uint64_t{block.x} * block.y * block.z;
    if (kernels().count(kernel) == 0) {
        status = cudaErrorInvalidDeviceFunction;
    } else if (grid.x == 0 || grid.y == 0 || grid.z == 0 || threads == 0 || threads > 1024 || grid.y > 65535 ||
               grid.z > 65535) {
        status = cudaErrorInvalidConfiguration;
    } else if (cluster.x * cluster.y * cluster.z > (device.major == 9 ? 16u : 1u) || grid.x % cluster.x != 0 ||
               grid.y % cluster.y != 0 || grid.z % cluster.z != 0) {
        status = cudaErrorInvalidClusterSize;
    } else if (smem > 48 * 1024 && smem > static_cast<size_t>(smem_allowed()[kernel])) {
        status = cudaErrorInvalidValue;
    }
    status = ended(call, status);
    if (status == cudaSuccess && hook != nullptr) {
        uint32_t const blocks[3] = {grid.x, grid.y, grid.z}, size[3] = {block.x, block.y, block.z};
        status = ended(call, static_cast<cudaError_t>(hook(kernels()[kernel].c_str(), blocks, size, smem, arguments)));
    }
    auto triple = [](dim3 d) {
        return "[" + std::to_string(d.x) + "," + std::to_string(d.y) + "," + std::to_string(d.z) + "]";
    };
    launches() += "{\"kernel\":\"" + kernels()[kernel] + "\",\"grid\":" + triple(grid) + ",\"block\":" + triple(block) +
                  ",\"cluster\":" + triple(cluster) + ",\"smem\":" + std::to_string(smem) + ",\"status\":" + std::to_string(status) + "}\n";
    return status;
}

int element_bytes(CUtensorMapDataType type) {
    switch (type) {
        case CU_TENSOR_MAP_DATA_TYPE_UINT8:
            return 1;
        case CU_TENSOR_MAP_DATA_TYPE_UINT16:
        case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
        case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16:
            return 2;
        case CU_TENSOR_MAP_DATA_TYPE_FLOAT32:
            return 4;
        default:
            return 0;
    }
}

// The driver's own conditions for a descriptor of plain tiles (interleave none), as its documentation gives them.
CUresult encode_tiled(CUtensorMap*, CUtensorMapDataType type, cuuint32_t rank, void* address, cuuint64_t const* dims,
                      cuuint64_t const* strides, cuuint32_t const* box, cuuint32_t const* steps, CUtensorMapInterleave,
                      CUtensorMapSwizzle swizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
    int const bytes = element_bytes(type);
    bool good = bytes > 0 && rank >= 1 && rank <= 5 && reinterpret_cast<uintptr_t>(address) % 16 == 0;
    for (cuuint32_t i = 0; good && i < rank; ++i) {
        good = dims[i] >= 1 && dims[i] <= (uint64_t{1} << 32) && box[i] >= 1 && box[i] <= 256 && steps[i] >= 1 &&
               steps[i] <= 8 && (i + 1 == rank || (strides[i] % 16 == 0 && strides[i] < (uint64_t{1} << 40)));
    }
    uint64_t const row = good ? uint64_t{box[0]} * static_cast<uint64_t>(bytes) : 0;
    uint64_t const widest = swizzle == CU_TENSOR_MAP_SWIZZLE_32B   ? 32
                            : swizzle == CU_TENSOR_MAP_SWIZZLE_64B ? 64
                            : swizzle == CU_TENSOR_MAP_SWIZZLE_128B ? 128
                                                                    : UINT64_MAX;
    good = good && row % 16 == 0 && row <= widest && failing != "cuTensorMapEncodeTiled";
    descriptors += good ? 1 : 0;
    return good ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

}  // namespace

// ---- for the driver script -------------------------------------------------------------------------------------

EXPORT void stub_device(int major, int minor, int sms, int l2, int smem_optin) {
    device = Device{major, minor, sms, l2, smem_optin};
    smem_allowed().clear();
}
EXPORT void stub_fail(char const* call, int error) {
    failing = call;
    injected = static_cast<cudaError_t>(error);
}
// The launches since the last call, one JSON object a line; valid until the next call.
EXPORT char const* stub_take() {
    static std::string taken;
    taken.swap(launches());
    launches().clear();
    return taken.c_str();
}
EXPORT void stub_hook(Hook executor) {
    hook = executor;
}
// The tensor that starts there says that it is on another device.
EXPORT void stub_elsewhere(void const* start) {
    elsewhere = start;
}
EXPORT int stub_last_error() {
    return last;
}
// How many tensor descriptors were made so far.
EXPORT int stub_descriptors() {
    return descriptors;
}

// ---- what nvcc's generated code calls --------------------------------------------------------------------------

extern "C" {
void** __cudaRegisterFatBinary(void*) {
    static void* handle = nullptr;
    return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterVar(void**, char*, char*, char const*, int, size_t, int, int) {}
void __cudaRegisterFunction(void**, char const* host, char*, char const* name, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {
    kernels()[host] = name;
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t smem, cudaStream_t stream) {
    pushed = Configuration{grid, block, smem, stream};
    return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* smem, void* stream) {
    *grid = pushed.grid;
    *block = pushed.block;
    *smem = pushed.smem;
    *static_cast<cudaStream_t*>(stream) = pushed.stream;
    return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, void const* host) {
    *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(host));
    return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, size_t smem,
                               cudaStream_t) {
    return launch("cudaLaunchKernel", reinterpret_cast<void const*>(kernel), grid, block, smem, arguments);
}

// ---- the runtime API, as far as the library uses it ------------------------------------------------------------

cudaError_t cudaLaunchKernel(void const* kernel, dim3 grid, dim3 block, void** arguments, size_t smem, cudaStream_t) {
    return launch("cudaLaunchKernel", kernel, grid, block, smem, arguments);
}
cudaError_t cudaLaunchKernelExC(cudaLaunchConfig_t const* config, void const* kernel, void** arguments) {
    dim3 cluster{1, 1, 1};
    for (unsigned i = 0; i < config->numAttrs; ++i) {
        if (config->attrs[i].id == cudaLaunchAttributeClusterDimension) {
            auto const& size = config->attrs[i].val.clusterDim;
            cluster = dim3(size.x, size.y, size.z);
        }
    }
    return launch("cudaLaunchKernelExC", kernel, config->gridDim, config->blockDim, config->dynamicSmemBytes, arguments,
                  cluster);
}
cudaError_t cudaGetDriverEntryPointByVersion(char const* symbol, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* found) {
    bool const known = std::strcmp(symbol, "cuTensorMapEncodeTiled") == 0;
    *function = known ? reinterpret_cast<void*>(&encode_tiled) : nullptr;
    *found = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return ended("cudaGetDriverEntryPointByVersion", cudaSuccess);
}
cudaError_t cudaFuncSetAttribute(void const* kernel, cudaFuncAttribute attribute, int value) {
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) {
        return ended("cudaFuncSetAttribute", cudaSuccess);
    }
    if (value > device.smem_optin) {
        return ended("cudaFuncSetAttribute", cudaErrorInvalidValue);
    }
    smem_allowed()[kernel] = value;
    return ended("cudaFuncSetAttribute", cudaSuccess);
}
cudaError_t cudaGetDeviceCount(int* count) {
    *count = 1;
    return ended("cudaGetDeviceCount", cudaSuccess);
}
cudaError_t cudaGetDevice(int* index) {
    *index = 0;
    return ended("cudaGetDevice", cudaSuccess);
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
    *properties = cudaDeviceProp{};
    std::strcpy(properties->name, "stand-in");
    properties->major = device.major;
    properties->minor = device.minor;
    properties->multiProcessorCount = device.sms;
    properties->l2CacheSize = device.l2;
    properties->sharedMemPerBlockOptin = static_cast<size_t>(device.smem_optin);
    return ended("cudaGetDeviceProperties", cudaSuccess);
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    switch (attribute) {
        case cudaDevAttrL2CacheSize:
            *value = device.l2;
            break;
        case cudaDevAttrMultiProcessorCount:
            *value = device.sms;
            break;
        default:
            return ended("cudaDeviceGetAttribute", cudaErrorInvalidValue);
    }
    return ended("cudaDeviceGetAttribute", cudaSuccess);
}
cudaError_t cudaGetLastError() {
    cudaError_t const found = last;
    last = cudaSuccess;
    return found;
}
cudaError_t cudaPeekAtLastError() {
    return last;
}
char const* cudaGetErrorName(cudaError_t) {
    return "cudaErrorOfTheStandIn";
}
char const* cudaGetErrorString(cudaError_t) {
    return "an error of the stand-in runtime";
}

// ---- torch's shims that need CUDA ------------------------------------------------------------------------------

int32_t aoti_torch_device_type_cuda() {
    return 0;
}  // what a CPU tensor says of itself
int32_t aoti_torch_get_data_ptr(void* tensor, void** start);  // torch's own
int32_t aoti_torch_get_device_index(void* tensor, int32_t* index) {
    void* start = nullptr;
    int32_t const status = aoti_torch_get_data_ptr(tensor, &start);
    *index = elsewhere != nullptr && start == elsewhere ? 1 : -1;  // a CPU tensor has none
    return status;
}
int32_t aoti_torch_create_device_guard(int32_t, void** guard) {
    *guard = nullptr;
    return 0;
}
int32_t aoti_torch_delete_device_guard(void*) {
    return 0;
}
int32_t aoti_torch_get_current_device_index(int32_t* index) {
    *index = 0;
    return 0;
}
int32_t aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
    *stream = nullptr;
    return 0;
}
}
