// SPDX-License-Identifier: Apache-2.0
// The transport of a datagram socket, connected or not: gossamer._core.DatagramTransportBase. Of AF_INET, AF_INET6 and
// AF_UNIX; others are asyncio's own transport's.
//
// A turn receives up to kMostReads datagrams, each one call of the protocol. What sending and receiving raise that is an
// OSError goes to the protocol's error_received, and the transport stays.
#pragma once

#include "cpython/api.hpp"

#include <deque>

#include "cpython/ref.hpp"
#include "cpython/socket_address.hpp"
#include "loop/transport_base.hpp"

namespace gossamer::loop {

class DatagramTransport final : public Transport {
public:
    /// `address`: of every datagram that is sent, or None.
    DatagramTransport(EventLoop& loop, PyObject* self, PyObject* socket, PyObject* address);

    /// Sends, or keeps for later, what has a buffer, to `to` (None: whom the socket or the transport says). Throws ErrorSet.
    void send_to(PyObject* data, PyObject* to);

    std::size_t unsent_bytes() const noexcept override { return unsent_bytes_; }

    /// After the extra information was filled in: whether the socket has a peer.
    void set_connected(bool is_connected) noexcept { is_connected_ = is_connected; }
    /// Tries to send again what the kernel did not take.
    void retry();

    int traverse(visitproc visit, void* arg) override;
    void clear() override;

private:
    struct Message {
        cpython::Ref data;  // bytes
        cpython::Ref to;
    };

    void take_turn() override;
    bool has_work() const noexcept override { return can_read() || has_to_flush(); }
    void drop_unsent() override;

    bool has_to_flush() const noexcept { return can_write() && !is_peer_full_ && !unsent_.empty(); }
    bool receive_one();
    void receive_error();
    cpython::Ref address_object(const cpython::SocketAddress& address);
    bool try_send(const char* bytes, std::size_t size, PyObject* data, PyObject* to);
    bool send_by_method(PyObject* data, PyObject* to);
    const cpython::SocketAddress* find_address(PyObject* to, cpython::SocketAddress& parsed) const;
    void wait_for_room();
    void flush();

    // never changes
    const cpython::Ref address_;
    const int family_;

    bool is_connected_ = false;
    bool is_peer_full_ = false;  // until retry()
    std::deque<Message> unsent_;
    std::size_t unsent_bytes_ = 0;
    // The last sender: the next datagram often comes from it, and mostly the answer goes to it.
    cpython::SocketAddress last_address_;
    cpython::Ref last_address_object_;
};

/// Creates the class. Throws ErrorSet.
void create_datagram_transport_type(PyObject* module, const Parts& parts);

}  // namespace gossamer::loop
