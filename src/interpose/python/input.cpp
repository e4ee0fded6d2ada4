// SPDX-License-Identifier: Apache-2.0
// builtins.input on a terminal, where it reads with C's stdio and not through sys.stdin.
//
// The prompt is shown first, as the original's reader shows it; then the virtual thread parks until the terminal has a
// line, and the original takes it. With the readline module loaded the line is edited while it is read, in a way that the
// terminal itself does not know, so that case is left to the original. Elsewhere input() reads sys.stdin, which parks.
//
// Source: builtin_input_impl in Python/bltinmodule.c, PyOS_StdioReadline in Parser/myreadline.c.
#include "cpython/api.hpp"

#include <cstdio>
#include <poll.h>
#include <unistd.h>

#include "cpython/ref.hpp"
#include "interpose/python/install.hpp"
#include "interpose/python/method_table.hpp"
#include "sched/wait.hpp"

namespace gossamer::interpose {

using cpython::guarded;
using cpython::Ref;
using cpython::steal;
using sched::Hub;

namespace {

PyCFunction original_input = nullptr;

/// Whether sys.`name` is the file of descriptor `fd`. What is wrong with it the original says.
bool is_standard_file(const char* name, int fd) noexcept {
    PyObject* file = PySys_GetObject(name);
    const Ref number = Ref::steal_or_null(file == nullptr ? nullptr : PyObject_CallMethod(file, "fileno", nullptr));
    const bool is_known = number && PyLong_Check(number.ptr()) && PyLong_AsLong(number.ptr()) == fd;
    PyErr_Clear();
    return is_known;
}

bool reads_from_terminal() noexcept {
    return ::isatty(STDIN_FILENO) != 0 && ::isatty(STDOUT_FILENO) != 0 && is_standard_file("stdin", STDIN_FILENO) &&
           is_standard_file("stdout", STDOUT_FILENO);
}

bool edits_lines() noexcept {
    PyObject* modules = PyImport_GetModuleDict();
    return PyDict_GetItemString(modules, "readline") != nullptr;
}

/// What C's reader has taken from the terminal and not yet given out.
bool has_read_ahead() noexcept { return stdin->_IO_read_ptr != stdin->_IO_read_end; }

void show_prompt(PyObject* prompt) {
    PyObject* file = PySys_GetObject("stdout");
    steal(PyObject_CallMethod(file, "flush", nullptr));
    const Ref encoding = steal(PyObject_GetAttrString(file, "encoding"));
    const Ref errors = steal(PyObject_GetAttrString(file, "errors"));
    const Ref text = steal(PyObject_Str(prompt));
    const Ref bytes = steal(PyObject_CallMethod(text.ptr(), "encode", "OO", encoding.ptr(), errors.ptr()));
    std::fflush(stdout);
    std::fputs(PyBytes_AsString(bytes.ptr()), stderr);
    std::fflush(stderr);
}

PyObject* input(PyObject* module, PyObject* const* args, Py_ssize_t count) {
    const auto original = as<FastFunction>(original_input);
    Hub* hub = Hub::current();
    if (hub == nullptr || count > 1 || has_read_ahead() || edits_lines() || !reads_from_terminal()) {
        return original(module, args, count);
    }
    return guarded<PyObject*>(nullptr, [&]() -> PyObject* {
        if (count == 1) {
            show_prompt(args[0]);
        }
        for (;;) {
            pollfd descriptor{.fd = STDIN_FILENO, .events = POLLIN, .revents = 0};
            if (::poll(&descriptor, 1, 0) != 0) {
                return original(module, nullptr, 0);
            }
            (void)sched::wait_for_fd(*hub, STDIN_FILENO, nullptr, core::Interest::kRead, "input",
                                     core::Deadline::never());
        }
    });
}

}  // namespace

void plan_input() {
    const Ref module = steal(PyImport_ImportModule("builtins"));
    plan_swap(module.ptr(), "input", {{METH_FASTCALL, input}}, original_input);
}

}  // namespace gossamer::interpose
