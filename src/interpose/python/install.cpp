// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "interpose/python/install.hpp"

#include <mutex>

#include "cpython/error.hpp"
#include "interpose/libc/redirected_calls.hpp"
#include "interpose/python/late_import.hpp"
#include "interpose/python/method_table.hpp"
#include "sched/hub.hpp"

namespace gossamer::interpose {

namespace {

/// Held while tables change. Several threads may want it at once; its holder runs Python code, and the GIL may change
/// hands meanwhile, so whoever waits for it is detached. None of that code comes back here.
std::unique_lock<std::mutex> lock_tables() {
    static std::mutex mutex;
    std::unique_lock lock(mutex, std::try_to_lock);
    if (!lock) {
        PyThreadState* tstate = PyEval_SaveThread();
        lock.lock();
        PyEval_RestoreThread(tstate);
    }
    return lock;
}

void install_all_but_late_imports() {
    const std::unique_lock lock = lock_tables();
    static bool is_planned = false;
    adopt_socket_type();
    adopt_buffered_types();
    if (!is_planned) {
        plan_time();
        plan_thread();
        plan_threading();
        plan_queue();
        plan_sys();
        plan_monitoring();
        plan_profiler();
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
        plan_multiprocessing();
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
    redirect_calls_in_new_objects();
    plan_imported();
}

void uninstall() {
    const std::unique_lock lock = lock_tables();
    bool is_in_use = false;
    sched::Hub::for_each(PyInterpreterState_Get(), [&](sched::Hub& hub) { is_in_use |= hub.live_count() > 1; });
    if (is_in_use) {
        cpython::raise(PyExc_RuntimeError, "virtual threads run: who waits for them would not be woken any more");
    }
    uninstall_planned();
    restore_calls();
    release_thread_ends();
    release_socket_type();
    release_buffered_types();
    release_imported();
}

}  // namespace gossamer::interpose
