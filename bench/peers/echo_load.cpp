// SPDX-License-Identifier: Apache-2.0
// The load of the echo rows, the same for every server: so many connections, each with one message under way.
//
//     echo_load [anew | datagrams] CONNECTIONS BYTES SLICES SLICE_MILLISECONDS PORT:PID...
//
// anew: each message has a connection of its own, which is over when the server has closed it too. datagrams: by UDP.
//
// The servers take turns, in slices so short that whatever else the machine does hits all of them alike; the order is
// turned round with each slice. A slice ends when every message is answered, so a server has no work outside its own.
// Prints a JSON list with an object for each server: messages answered, wall time and the server's CPU time, of all slices.
#include <arpa/inet.h>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string>
#include <string_view>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>
#include <vector>

namespace {

constexpr int kBatch = 256;

int checked(int result, const char* call) {
    if (result < 0) {
        std::perror(call);
        std::exit(1);
    }
    return result;
}

std::int64_t read_clock(clockid_t clock) {
    timespec time{};
    checked(clock_gettime(clock, &time), "clock_gettime");
    return time.tv_sec * std::int64_t{1'000'000'000} + time.tv_nsec;
}

enum class Kind { kLasting, kAnew, kDatagrams };

int connect_to(int port, Kind kind) {
    const int type = kind == Kind::kDatagrams ? SOCK_DGRAM : SOCK_STREAM;
    const int fd = checked(socket(AF_INET, type | SOCK_CLOEXEC, 0), "socket");
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(static_cast<std::uint16_t>(port));
    checked(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address), "connect");
    const int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

struct Figures {
    long long messages = 0;
    long long wall = 0;
    long long cpu = 0;

    void add(const Figures& other) {
        messages += other.messages;
        wall += other.wall;
        cpu += other.cpu;
    }
};

struct Connection {
    int fd = -1;
    std::size_t received = 0;
};

class Load {
public:
    Load(int port, pid_t server, int connections, std::size_t bytes, Kind kind)
        : epoll_(checked(epoll_create1(EPOLL_CLOEXEC), "epoll_create1")),
          port_(port),
          message_(bytes, 'x'),
          kind_(kind),
          connections_(static_cast<std::size_t>(connections)) {
        if (clock_getcpuclockid(server, &server_clock_) != 0) {
            std::fputs("there is no such server process\n", stderr);
            std::exit(1);
        }
        for (Connection& connection : connections_) {
            open(connection);
        }
    }

    /// Keeps every connection busy for that long, then takes the answers that are still to come.
    Figures run_slice(std::int64_t nanoseconds) {
        const std::int64_t start = read_clock(CLOCK_MONOTONIC);
        const std::int64_t server_start = read_clock(server_clock_);
        std::int64_t messages = 0;
        std::size_t under_way = connections_.size();
        for (Connection& connection : connections_) {
            ask(connection);
        }
        while (under_way > 0) {
            epoll_event events[kBatch];
            const int count = checked(epoll_wait(epoll_, events, kBatch, 5000), "epoll_wait");
            if (count == 0) {
                std::fputs("no answer for 5 s\n", stderr);
                std::exit(1);
            }
            const bool goes_on = read_clock(CLOCK_MONOTONIC) - start < nanoseconds;
            for (int index = 0; index < count; ++index) {
                Connection& connection = connections_[events[index].data.u32];
                if (!take_answer(connection)) {
                    continue;
                }
                ++messages;
                if (goes_on) {
                    ask(connection);
                } else {
                    --under_way;
                }
            }
        }
        return {messages, read_clock(CLOCK_MONOTONIC) - start, read_clock(server_clock_) - server_start};
    }

private:
    void open(Connection& connection) {
        connection = {connect_to(port_, kind_), 0};
        epoll_event event{};
        event.events = EPOLLIN;
        event.data.u32 = static_cast<std::uint32_t>(&connection - connections_.data());
        checked(epoll_ctl(epoll_, EPOLL_CTL_ADD, connection.fd, &event), "epoll_ctl");
    }

    void ask(Connection& connection) {
        if (connection.fd < 0) {
            open(connection);
        }
        if (send(connection.fd, message_.data(), message_.size(), 0) != static_cast<ssize_t>(message_.size())) {
            std::perror("send");
            std::exit(1);
        }
    }

    /// Returns whether the message is over, and with `anew` its connection.
    bool take_answer(Connection& connection) {
        char buffer[65536];
        const ssize_t size = recv(connection.fd, buffer, sizeof buffer, 0);
        if (size == 0 && kind_ == Kind::kAnew && connection.received == message_.size()) {
            close(connection.fd);
            connection = {};
            return true;
        }
        if (size <= 0) {
            std::fputs("the server closed a connection\n", stderr);
            std::exit(1);
        }
        connection.received += static_cast<std::size_t>(size);
        if (connection.received < message_.size()) {
            return false;
        }
        if (kind_ == Kind::kAnew) {
            shutdown(connection.fd, SHUT_WR);
            return false;
        }
        connection.received = 0;
        return true;
    }

    const int epoll_;
    const int port_;
    const std::string message_;
    const Kind kind_;
    clockid_t server_clock_{};
    std::vector<Connection> connections_;
};

}  // namespace

int main(int count, char** arguments) {
    Kind kind = Kind::kLasting;
    const std::string_view first = count > 1 ? arguments[1] : "";
    if (first == "anew" || first == "datagrams") {
        kind = first == "anew" ? Kind::kAnew : Kind::kDatagrams;
        --count;
        ++arguments;
    }
    if (count < 6) {
        std::fputs("usage: echo_load [anew | datagrams] CONNECTIONS BYTES SLICES SLICE_MILLISECONDS PORT:PID...\n",
                   stderr);
        return 2;
    }
    const int connections = std::atoi(arguments[1]);
    const std::size_t bytes = std::strtoul(arguments[2], nullptr, 10);
    const int slices = std::atoi(arguments[3]);
    const std::int64_t slice = std::atoi(arguments[4]) * std::int64_t{1'000'000};
    std::vector<Load> loads;
    for (int index = 5; index < count; ++index) {
        int port = 0;
        int pid = 0;
        if (std::sscanf(arguments[index], "%d:%d", &port, &pid) != 2) {
            return 2;
        }
        loads.emplace_back(port, pid, connections, bytes, kind);
        loads.back().run_slice(slice);  // warm-up
    }
    std::vector<Figures> figures(loads.size());
    for (int round = 0; round < slices; ++round) {
        for (std::size_t turn = 0; turn < loads.size(); ++turn) {
            const std::size_t index = round % 2 == 0 ? turn : loads.size() - 1 - turn;
            figures[index].add(loads[index].run_slice(slice));
        }
    }
    for (std::size_t index = 0; index < figures.size(); ++index) {
        std::printf("%s{\"operations\": %lld, \"wall_ns\": %lld, \"cpu_ns\": %lld}", index == 0 ? "[" : ", ",
                    figures[index].messages, figures[index].wall, figures[index].cpu);
    }
    std::puts("]");
}
