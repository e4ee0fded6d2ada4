// SPDX-License-Identifier: Apache-2.0
#include "core/support.hpp"

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

// ThreadSanitizer ends a child that starts threads after a fork of a program with several, unless it is told not to.
extern "C" [[gnu::visibility("default"), gnu::used]] const char* __tsan_default_options() { return "die_after_fork=0"; }

namespace gossamer::core::testing {

std::uint64_t seed() {
    const char* text = std::getenv("GOSSAMER_SEED");
    const std::uint64_t value = text == nullptr ? 20'260'101 : std::stoull(text);
    std::cout << "GOSSAMER_SEED=" << value << '\n';
    return value;
}

std::size_t status_figure(const std::string& name) {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);) {
        if (line.starts_with(name + ":")) {
            return std::stoul(line.substr(name.size() + 1));
        }
    }
    throw std::runtime_error("no " + name + " in /proc/self/status");
}

std::size_t mapping_count() {
    std::ifstream maps("/proc/self/maps");
    std::size_t count = 0;
    for (std::string line; std::getline(maps, line);) {
        ++count;
    }
    return count;
}

int run_in_child(const std::function<int()>& body) {
    const pid_t child = ::fork();
    if (child == 0) {
        ::_exit(body());
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

NoMoreMemory::NoMoreMemory() {
    rlimit limit{};
    ::getrlimit(RLIMIT_AS, &limit);
    previous_ = limit.rlim_cur;
    limit.rlim_cur = status_figure("VmSize") * 1024;
    ::setrlimit(RLIMIT_AS, &limit);
}

NoMoreMemory::~NoMoreMemory() {
    rlimit limit{};
    ::getrlimit(RLIMIT_AS, &limit);
    limit.rlim_cur = previous_;
    ::setrlimit(RLIMIT_AS, &limit);
}

}  // namespace gossamer::core::testing
