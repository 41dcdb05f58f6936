// The Python face, and the hook that the stand-in CUDA runtime calls at each launch. BSD-3-Clause, see LICENSE.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>

#include "machine.h"

namespace py = pybind11;

namespace {

using gb10::Dim3;
using gb10::Machine;

struct Launched {
    std::string kernel, error;
    std::array<uint32_t, 3> grid, block;
    uint32_t shared;
    uint64_t instructions;
    double seconds;
};

std::vector<Launched>& launched() {
    static std::vector<Launched> all;
    return all;
}
Machine*& attached() {
    static Machine* machine = nullptr;
    return machine;
}

// Called without the interpreter's lock, and never touches Python: a launch may take long.
int execute(char const* kernel, uint32_t const* grid, uint32_t const* block, uint64_t shared, void** arguments) {
    Launched made{
        kernel, "", {grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, static_cast<uint32_t>(shared), 0, 0.0};
    auto const begun = std::chrono::steady_clock::now();
    try {
        attached()->launch(kernel, Dim3{grid[0], grid[1], grid[2]}, Dim3{block[0], block[1], block[2]},
                           static_cast<uint32_t>(shared), arguments);
    } catch (std::exception const& stop) {
        made.error = stop.what();
    }
    made.instructions = attached()->instructions;
    made.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
    launched().push_back(made);
    return made.error.empty() ? 0 : 719;  // cudaErrorLaunchFailure
}

py::dict of(gb10::Party const& party) {
    py::dict made;
    made["block"] = party.block;
    made["warp"] = party.warp;
    made["lanes"] = party.lanes;
    made["line"] = party.line;
    made["text"] = party.text;
    return made;
}

py::list take_findings(Machine& machine) {
    py::list made;
    for (auto const& found : machine.findings.take()) {
        py::dict one;
        one["kind"] = found.kind;
        one["note"] = found.note;
        one["space"] = found.space;
        one["what"] = found.what;
        one["kernel"] = found.kernel;
        one["count"] = found.count;
        one["who"] = of(found.who);
        one["other"] = found.has_other ? py::object(of(found.other)) : py::none();
        made.append(one);
    }
    return made;
}

py::list take_launches() {
    py::list made;
    for (auto const& launch : launched()) {
        py::dict one;
        one["kernel"] = launch.kernel;
        one["error"] = launch.error;
        one["grid"] = launch.grid;
        one["block"] = launch.block;
        one["shared"] = launch.shared;
        one["instructions"] = launch.instructions;
        one["seconds"] = launch.seconds;
        made.append(one);
    }
    launched().clear();
    return made;
}

// A launch by hand: every argument is a number of up to eight bytes.
void launch(Machine& machine, std::string const& kernel, std::array<uint32_t, 3> grid, std::array<uint32_t, 3> block,
            uint32_t shared, std::vector<uint64_t> arguments) {
    std::vector<void*> places;
    for (auto& argument : arguments) {
        places.push_back(&argument);
    }
    machine.launch(kernel, {grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, shared, places.data());
}

// For a kernel: every instruction's line, text, and how often warps ran it.
py::list counts(Machine const& machine, std::string const& name) {
    py::list made;
    auto& kernel = *machine.module.at(name);
    gb10::decode(kernel);
    for (size_t i = 0; i + 1 < kernel.code.size(); ++i) {
        made.append(py::make_tuple(kernel.code[i].line, kernel.code[i].text, kernel.executed[i]));
    }
    return made;
}

// Instructions that would stop a launch: kernel, line, text.
py::list unknown(Machine const& machine) {
    py::list made;
    for (auto const& [name, kernel] : machine.module) {
        gb10::decode(*kernel);
        for (auto const& code : kernel->code) {
            if (code.op == gb10::Op::Unknown) {
                made.append(py::make_tuple(name, code.line, code.text));
            }
        }
    }
    return made;
}

}  // namespace

PYBIND11_MODULE(gb10_executor, module) {
    module.doc() = "Executes the PTX of 12.1's kernels: see ci/prove/gb10.";
    py::register_exception<gb10::Stop>(module, "Stop", PyExc_RuntimeError);
    py::class_<gb10::Settings>(module, "Settings")
        .def(py::init<>())
        .def_readwrite("sms", &gb10::Settings::sms)
        .def_readwrite("seed", &gb10::Settings::seed)
        .def_readwrite("lazy", &gb10::Settings::lazy)
        .def_readwrite("poison", &gb10::Settings::poison)
        .def_readwrite("limit", &gb10::Settings::limit)
        .def_readwrite("named", &gb10::Settings::named);
    py::class_<Machine>(module, "Machine")
        .def(py::init<gb10::Settings>())
        .def_readwrite("settings", &Machine::settings)
        .def("load", &Machine::load, py::call_guard<py::gil_scoped_release>())
        .def("kernels",
             [](Machine const& machine) {
                 std::vector<std::string> names;
                 for (auto const& [name, kernel] : machine.module) {
                     names.push_back(name);
                 }
                 return names;
             })
        .def("counts", &counts)
        .def("launch", &launch, py::call_guard<py::gil_scoped_release>())
        .def("unknown", &unknown)
        .def("take_findings", &take_findings)
        .def("take_launches", [](Machine&) { return take_launches(); })
        // Gives the address that the stand-in runtime is to call; launches go to this machine from now on.
        .def("attach", [](Machine& machine) {
            attached() = &machine;
            return reinterpret_cast<uintptr_t>(&execute);
        });
    module.def("poison", &gb10_arena_poison, "what tensors hold before they are written");
}
