"""The edits that make upstream's kernels right for devices other than Hopper's. Data; ci/sources/patch.py applies them.

They are the same for all families: what differs comes from the defines that csrc/ reads (FA3_ARCH and so on).
"""

from __future__ import annotations

from ci.sources.fault_patches import FAULT_PATCHES
from ci.sources.feature_patches import FEATURE_PATCHES
from ci.sources.fp8_patches import FP8_PATCHES
from ci.sources.kv8_patches import KV8_PATCHES
from ci.sources.order_patches import ORDER_PATCHES
from ci.sources.patch import Change, Edit
from ci.sources.qv_patches import QV_PATCHES
from ci.sources.values_patches import VALUES_PATCHES

_API = "hopper/flash_api_stable.cpp"
_FORWARD = "hopper/flash_fwd_launch_template.h"
_BACKWARD = "hopper/flash_bwd_launch_template.h"
_LIMIT = (
    '\n    static_assert(AttnKernel::SharedStorageSize <= ::fa3::kSmemLimit, "tile larger than the shared memory");'
)

_CALL_ALONE = "#define CHECK_CUTLASS(call) call"
_LAUNCHER = Change(
    anchor='#include "static_switch.h"', replacement='#include "static_switch.h"\n#include "fa3_launch.h"'
)


def _l2_share(megabytes: int) -> Change:
    """Instead of that many megabytes: the same part of the device's L2 cache as they are of an H100's."""
    return Change(
        anchor=f"int const size_l2 = {megabytes} * 1024 * 1024",
        replacement=f"int const size_l2 = ::fa3::l2_share({megabytes})",
    )


def _aligned(checks: str, *, count: int = 1) -> Change:
    """After the checks that tensors are on the device: that they can be read 16 bytes at a time."""
    return Change(
        anchor=checks, replacement=f"{checks} {checks.replace('CHECK_DEVICE', 'FA3_CHECK_ALIGNED')}", count=count
    )


def _device_first(signature_end: str, tensor: str) -> Change:
    """At a function's start: make the tensor's device the current one, before its properties are asked for."""
    return Change(
        anchor=signature_end,
        replacement=f"{signature_end}\n    auto const fa3_device = {tensor}.get_device();\n"
        f"    CHECK_DEVICE({tensor});\n    auto fa3_device_guard = make_device_guard({tensor});\n",
    )


EDITS: tuple[Edit, ...] = (
    Edit(
        name="guard",
        file="hopper/utils.h",
        why="the mma.sync kernels' bodies are left out of code for 9.0 and later: empty kernels that report success",
        changes=(
            Change(
                anchor="(__CUDA_ARCH__ >= 800) && (__CUDA_ARCH__ <= 890)",
                replacement="(__CUDA_ARCH__ >= 800)",
            ),
        ),
    ),
    Edit(
        name="arch-switch",
        file="hopper/static_switch.h",
        why="one family a library: its effective arch is a compile-time constant",
        changes=(
            Change(
                anchor="#ifdef FLASHATTENTION_DISABLE_SM8x",
                replacement='#include "fa3_family.h"\n#if defined(ARCH_SWITCH)\n#elif 0',
            ),
        ),
    ),
    Edit(
        name="effective-arch",
        file=_API,
        why="host code must choose tiles and features by the family, not by the device's own number",
        changes=(
            Change(anchor="dprops->major * 10 + dprops->minor", replacement="::fa3::kArch", count=4),
            Change(anchor="if (dprops->major < 9)", replacement="if (::fa3::kArch < 90)"),
            Change(anchor="dprops->major == 9", replacement="::fa3::kArch == 90"),
            Change(
                anchor='#include "tile_size.h"',
                replacement='#include "fa3_gate.h"\n#include "fa3_tiles.h"\n#include "tile_size.h"',
            ),
        ),
    ),
    Edit(
        name="device-gate",
        file=_API,
        why="a device that none of the images runs on, or with less shared memory, gets an exception, not a launch; "
        "the device asked is the tensors', not the current one, and all of them are on it",
        changes=(
            Change(
                anchor='STD_TORCH_CHECK(x.is_cuda(), #x " must be on CUDA")',
                replacement="STD_TORCH_CHECK(x.is_cuda() && x.get_device() == fa3_device, "
                '#x " must be on CUDA, where the other tensors are")',
            ),
            Change(
                anchor="return &device_properties[device_index];",
                replacement="return ::fa3::admitted(&device_properties[device_index]);",
            ),
            Change(anchor="cudaGetErrorString(err)", replacement="::fa3::taken_error(err)", count=3),
            _device_first("        int64_t sm_margin\n        ) {", "q"),
            _device_first("    int64_t sm_margin\n) {", "q"),
            _device_first("        int64_t sm_margin) {", "seqused_k"),
            _device_first("std::optional<torch::headeronly::ScalarType> out_dtype_\n            ) {", "out_partial"),
        ),
    ),
    Edit(
        name="aligned",
        file=_API,
        why="a tensor that kernels cannot read 16 bytes at a time gets an exception, not a fault that ends the process",
        changes=(
            _aligned("CHECK_DEVICE(q); CHECK_DEVICE(k); CHECK_DEVICE(v);", count=2),
            *(
                _aligned(text)
                for text in (
                    "CHECK_DEVICE(k_new); CHECK_DEVICE(v_new);",
                    "CHECK_DEVICE(q_v);",
                    "CHECK_DEVICE(out); CHECK_DEVICE(dout);",
                    "CHECK_DEVICE(dq);",
                    "CHECK_DEVICE(dk);",
                    "CHECK_DEVICE(dv);",
                )
            ),
            Change(
                anchor='"Output tensor must have contiguous last dimension");',
                replacement='"Output tensor must have contiguous last dimension");\n        FA3_CHECK_ALIGNED(out);',
                count=2,
            ),
        ),
    ),
    Edit(
        name="tiles",
        file="hopper/tile_size.h",
        why="upstream's tiles overflow 99 KB at head dim 256 and spill at 64: csrc/fa3_tile_*.h have ours",
        changes=(
            # forward_tile() comes from before: a kernel's file has its own head dim's alone, the host code all.
            Change(anchor="#include <tuple>", replacement='#include <tuple>\n\n#include "fa3_tile.h"'),
            Change(
                anchor="bool softcap=false, bool append_kv=false) {",
                replacement="bool softcap=false, bool append_kv=false) {\n"
                "    if (element_size == 2 && ::fa3::has_own_tile(sm86_or_89, headdim)) {\n"
                "        ::fa3::Tile const tile = ::fa3::forward_tile(headdim, headdim_v, "
                "{is_causal, is_local, paged_kv, varlen_and_split, softcap, append_kv});\n"
                "        return {tile.block_m, tile.block_n, tile.warps, tile.stages, tile.q_in_regs};\n"
                "    }",
            ),
        ),
    ),
    Edit(
        name="smem-limit-forward",
        file=_FORWARD,
        why="a tile that does not fit must fail the build, not the user's process",
        changes=(
            Change(
                anchor="int smem_size = AttnKernel::SharedStorageSize;",
                replacement=f"int smem_size = AttnKernel::SharedStorageSize;{_LIMIT}",
            ),
        ),
    ),
    Edit(
        name="smem-limit-backward",
        file=_BACKWARD,
        why="a tile that does not fit must fail the build, not the user's process",
        changes=(
            Change(
                anchor="int smem_size = AttnKernel::SharedStorageSize;",
                replacement=f"int smem_size = AttnKernel::SharedStorageSize;{_LIMIT}",
            ),
        ),
    ),
    Edit(
        name="errors",
        file="hopper/cuda_check.h",
        why="a CUDA error ends the process (and prints the build's path): throw instead",
        changes=(Change(anchor="#define CHECK_CUDA(call)", until="while(0)", replacement='#include "fa3_check.h"'),),
    ),
    Edit(
        name="launch-forward",
        file=_FORWARD,
        why="CUTLASS's launcher swallows the error of a failed launch",
        changes=(
            _LAUNCHER,
            Change(anchor="cutlass::kernel_launch<", replacement="::fa3::kernel_launch<"),
            Change(
                anchor="cutlass::launch_kernel_on_cluster(launch_params, kernel, kernel_params)",
                replacement="::fa3::check_status("
                "cutlass::launch_kernel_on_cluster(launch_params, kernel, kernel_params))",
            ),
        ),
    ),
    Edit(
        name="descriptor",
        file="cutlass/include/cute/atom/copy_traits_sm90_tma.hpp",
        why="CUTLASS goes on with an empty descriptor where the driver refuses to make one",
        changes=(
            Change(
                anchor="#include <cute/atom/copy_traits_sm90_tma_swizzle.hpp>",
                replacement='#include <cute/atom/copy_traits_sm90_tma_swizzle.hpp>\n#include "fa3_check.h"',
            ),
            Change(
                anchor='std::cerr << "TMA Desc Addr:   "',
                until="assert(false);",
                replacement="::fa3::check_descriptor(static_cast<int>(result));",
            ),
        ),
    ),
    Edit(
        name="launch-backward",
        file=_BACKWARD,
        why="CUTLASS's launcher swallows the error of a failed launch",
        changes=(
            _LAUNCHER,
            Change(anchor="cutlass::kernel_launch<", replacement="::fa3::kernel_launch<", count=5),
        ),
    ),
    Edit(
        name="check-cutlass",
        file="hopper/cuda_check.h",
        why="the macro around launches ends the process, and wants a status: ours throw",
        since="484a5dc1",
        changes=(Change(anchor="#define CHECK_CUTLASS(call)", until="while(0)", replacement=_CALL_ALONE),),
    ),
    Edit(
        name="cluster-backward",
        file=_BACKWARD,
        why="a failed launch of a cluster throws, too",
        since="484a5dc1",
        changes=(
            Change(
                anchor="CHECK_CUTLASS(cutlass::ClusterLauncher",
                replacement="::fa3::check_status(cutlass::ClusterLauncher",
            ),
        ),
    ),
    Edit(
        name="launch-combine",
        file="hopper/flash_fwd_combine_launch_template.h",
        why="CUTLASS's launcher swallows the error of a failed launch",
        changes=(
            _LAUNCHER,
            Change(anchor="cutlass::kernel_launch<", replacement="::fa3::kernel_launch<"),
        ),
    ),
    Edit(
        name="lse-strides",
        file=_FORWARD,
        why="partial LSE is written with assumed strides but combined with given ones (upstream's fix 28ef22c9)",
        before="28ef22c9",
        changes=(
            Change(
                anchor="{_1{}, seqlen_q, !is_varlen_q ? params.h * seqlen_q : 0, params.h * seqlen_q * batch_q}",
                replacement="{_1{}, params.lseaccum_head_stride, !is_varlen_q ? params.lseaccum_batch_stride : 0, "
                "params.lseaccum_split_stride}",
            ),
        ),
    ),
    Edit(
        name="semaphore-lifetime",
        file=_API,
        why="deterministic backward with grouped heads frees its semaphores before the kernel that uses them "
        "(upstream's fix bc0e4ac0)",
        before="bc0e4ac0",
        changes=(
            Change(
                anchor="if (num_heads_k != num_heads && params.deterministic) {",
                replacement="Tensor dk_semaphore, dv_semaphore;\n"
                "    if (num_heads_k != num_heads && params.deterministic) {",
            ),
            Change(anchor="Tensor dk_semaphore = ", replacement="dk_semaphore = "),
            Change(anchor="Tensor dv_semaphore = ", replacement="dv_semaphore = "),
        ),
    ),
    Edit(
        name="l2-splits",
        file="hopper/heuristics.h",
        why="the number of splits must follow the device's own L2 cache, not 50 MB",
        changes=(
            Change(anchor="#include <vector>", replacement='#include <vector>\n\n#include "fa3_device.h"'),
            _l2_share(50),
        ),
    ),
    Edit(
        name="l2-prepare",
        file="hopper/flash_prepare_scheduler.cu",
        why="heads that share the L2 cache: the device's own, not an H100's",
        changes=(
            Change(anchor='#include "flash.h"', replacement='#include "fa3_device.h"\n#include "flash.h"'),
            _l2_share(8),
        ),
    ),
    Edit(
        name="l2-schedule",
        file="hopper/tile_scheduler.hpp",
        why="heads that share the L2 cache: the device's own, not an H100's",
        changes=(
            Change(anchor='#include "utils.h"', replacement='#include "fa3_device.h"\n#include "utils.h"'),
            _l2_share(32),
            _l2_share(40),
        ),
    ),
    Edit(
        name="namespace",
        file=_API,
        why="each family registers its ops under a name of its own; flash_attn_3 belongs to the Python dispatcher",
        changes=(
            Change(anchor="STABLE_TORCH_LIBRARY(flash_attn_3, m)", replacement="FA3_TORCH_LIBRARY(FA3_NAMESPACE, m)"),
            Change(
                anchor="STABLE_TORCH_LIBRARY_IMPL(flash_attn_3, CUDA, m)",
                replacement="FA3_TORCH_LIBRARY_IMPL(FA3_NAMESPACE, CUDA, m)",
            ),
        ),
    ),
    Edit(
        name="no-python",
        file=_API,
        why="the library is loaded by torch's op loader: no Python module, so no Python ABI",
        changes=(
            Change(anchor="#include <Python.h>", replacement=""),
            Change(
                anchor="PyObject* PyInit__C(void)",
                until="return PyModule_Create(&module_def);",
                replacement="namespace {",
            ),
        ),
    ),
    Edit(
        name="weak-stream",
        file=_API,
        why="the one symbol that only libtorch_cuda has: weak, and asked for null, so that a CPU-only torch can load",
        changes=(
            Change(
                anchor='extern "C" AOTITorchError aoti_torch_get_current_cuda_stream('
                "int32_t device_index, void** ret_stream);",
                replacement='#include "fa3_torch.h"',
            ),
            Change(
                anchor="aoti_torch_get_current_cuda_stream(device_idx, &stream_ptr)",
                replacement="::fa3::current_stream(device_idx, &stream_ptr)",
                count=4,
            ),
        ),
    ),
    *FAULT_PATCHES,
    *FEATURE_PATCHES,
    *ORDER_PATCHES,
    *VALUES_PATCHES,
    *KV8_PATCHES,
    *FP8_PATCHES,
    *QV_PATCHES,
)
