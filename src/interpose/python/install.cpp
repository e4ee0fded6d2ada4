// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "interpose/python/install.hpp"

#include "interpose/python/method_table.hpp"

namespace gossamer::interpose {

void install() {
    static bool is_planned = false;
    if (!is_planned) {
        plan_time();
        plan_thread();
        plan_queue();
        plan_socket();
        plan_name_resolution();
        is_planned = true;
    }
    if (!is_installed()) {
        install_planned();
    }
}

}  // namespace gossamer::interpose
