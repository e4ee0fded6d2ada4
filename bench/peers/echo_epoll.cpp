// SPDX-License-Identifier: Apache-2.0
// The least that an echo server can do: one thread, edge-triggered epoll, one recv and one send a message.
//
// A recv that returns less than the buffer holds has drained the socket, unless the other side has closed, so the next
// one waits for the next edge. Prints its port and serves until it is killed.
#include <arpa/inet.h>
#include <cstdio>
#include <cstdlib>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

namespace {

constexpr int kBatch = 256;
char buffer[65536];

int checked(int result, const char* call) {
    if (result < 0) {
        std::perror(call);
        std::exit(1);
    }
    return result;
}

void watch(int epoll, int fd) {
    epoll_event event{};
    event.events = EPOLLIN | EPOLLRDHUP | EPOLLET;
    event.data.fd = fd;
    checked(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event), "epoll_ctl");
}

void accept_all(int epoll, int listener) {
    for (;;) {
        const int fd = accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            return;
        }
        const int one = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        watch(epoll, fd);
    }
}

void echo(int fd, bool is_ending) {
    for (;;) {
        const ssize_t size = recv(fd, buffer, sizeof buffer, 0);
        if (size <= 0 || send(fd, buffer, static_cast<std::size_t>(size), 0) != size) {
            close(fd);
            return;
        }
        if (static_cast<std::size_t>(size) < sizeof buffer && !is_ending) {
            return;
        }
    }
}

}  // namespace

int main() {
    const int listener = checked(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), "socket");
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    checked(bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address), "bind");
    checked(listen(listener, 1024), "listen");
    socklen_t size = sizeof address;
    checked(getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size), "getsockname");
    std::printf("%d\n", ntohs(address.sin_port));
    std::fflush(stdout);

    const int epoll = checked(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
    watch(epoll, listener);
    epoll_event events[kBatch];
    for (;;) {
        const int count = epoll_wait(epoll, events, kBatch, -1);
        for (int index = 0; index < count; ++index) {
            if (events[index].data.fd == listener) {
                accept_all(epoll, listener);
            } else {
                echo(events[index].data.fd, (events[index].events & EPOLLRDHUP) != 0);
            }
        }
    }
}
