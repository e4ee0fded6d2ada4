// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "interpose/python/install.hpp"

#include <mutex>

#include "interpose/python/late_import.hpp"
#include "interpose/python/method_table.hpp"

namespace gossamer::interpose {

namespace {

void install_all_but_late_imports() {
    // Several threads may come here at once. Planning runs Python code under the mutex, and the GIL may change hands
    // meanwhile: whoever waits for the mutex must be detached. None of that code comes back here.
    static std::mutex mutex;
    static bool is_planned = false;
    std::unique_lock lock(mutex, std::try_to_lock);
    if (!lock) {
        PyThreadState* tstate = PyEval_SaveThread();
        lock.lock();
        PyEval_RestoreThread(tstate);
    }
    adopt_socket_type();
    adopt_buffered_types();
    if (!is_planned) {
        plan_time();
        plan_thread();
        plan_threading();
        plan_queue();
        plan_sys();
        plan_async_exception();
        plan_socket();
        plan_name_resolution();
        plan_select();
        plan_os();
        plan_file_io();
        plan_buffered_io();
        plan_input();
        plan_signal();
        plan_late_imports();
        plan_ssl();
        is_planned = true;
    }
    adopt_thread_ends();
    if (!is_installed()) {
        install_planned();
    }
}

}  // namespace

void install() {
    install_all_but_late_imports();
    plan_imported();
}

}  // namespace gossamer::interpose
