// SPDX-License-Identifier: Apache-2.0
// A TLS connection: gossamer._core.TlsTransportBase. One object is the protocol of the transport below, which carries the
// encrypted bytes, and the transport of the protocol above, the program's. What happens once in a connection's life is
// Python (gossamer/_tls.py); everything else is here. asyncio.sslproto says what a connection does when.
//
//     transport below --receive--> incoming --read--> SSL object          --data_received--> protocol above
//     transport below <---write--- outgoing <-------- SSL object <--write-- unsent_ <-write- protocol above
//
// incoming and outgoing are ssl.MemoryBIO, the SSL object is what the program's SSLContext makes. Only as much is encrypted
// as the transport below takes at once: the rest waits in unsent_, as plain text.
//
//     state         what comes from below           what the program writes
//     -----         ---------------------           -----------------------
//     kUnwrapped    is not looked at                goes nowhere: not begun, or over
//     kHandshake    goes on with the handshake      waits
//     kWrapped      is read for the program         is sent
//     kFlushing     is read for the program         goes nowhere; what waits is sent, then comes kShutdown
//     kShutdown     is dropped, until its end       goes nowhere
//
// All of it runs in the loop's thread; but OpenSSL works with the GIL released, so that a thread which uses a transport that
// is not its own must at least not crash: nothing that OpenSSL reads from is freed meanwhile (is_writing_).
#pragma once

#include "cpython/api.hpp"

#include <optional>
#include <span>

#include "cpython/ref.hpp"
#include "loop/parts.hpp"
#include "loop/unsent.hpp"

namespace gossamer::loop {

/// What it takes to make a connection.
struct TlsSetup {
    PyObject* loop;
    PyObject* protocol;
    PyObject* ssl;  // whose methods are called: an ssl.SSLObject, or what that class would call
    bool is_inner;  // the latter: _ssl._SSLSocket
    PyObject* incoming;
    PyObject* outgoing;
    bool has_protocol_begun;  // its connection_made() was called, by a transport that is upgraded
};

class TlsTransport final {
public:
    enum class State { kUnwrapped, kHandshake, kWrapped, kFlushing, kShutdown };
    /// What the protocol above was told last.
    enum class Told { kNothing, kMade, kEof, kLost };

    TlsTransport(Parts& parts, PyObject* self, const TlsSetup& setup);

    /// That of an instance of our Python class; null: it was not opened.
    static TlsTransport* find(PyObject* self) noexcept;

    // ---- for the transport below ----

    /// Keeps what has come, to be looked at by proceed(). Throws ErrorSet. Runs no Python.
    void take(const char* bytes, std::size_t size);
    // The same, for a transport below that is not ours.
    cpython::Ref get_buffer();
    void update_buffer(Py_ssize_t size);
    /// Does what the state demands, with what has come. Throws ErrorSet, as the next ones do.
    void proceed();
    /// Returns whether the transport below has to stay open: there is more to send, or the program does not read.
    [[nodiscard]] bool reach_eof();
    void pause_writing() noexcept { is_below_full_ = true; }
    void resume_writing();

    /// Returns the protocol above if it has to be told that the connection is lost.
    [[nodiscard]] cpython::Ref lose();

    // ---- for the Python half ----

    void begin_handshake(PyObject* below);
    /// The handshake is over: an end of the connection, or its beginning.
    void end_handshake(bool was_good);
    /// Returns the protocol above if its connection_made() has to be called.
    [[nodiscard]] cpython::Ref note_made();
    void read();
    void resume();
    void abort(PyObject* error);

    // ---- for the program ----

    void set_protocol(PyObject* protocol);
    void write(PyObject* object);
    void write_several(PyObject* objects);
    void keep_unsent(PyObject* object);
    void close();
    bool is_closing();
    void pause_reading() noexcept { is_reading_paused_ = true; }
    void resume_reading();
    bool is_reading() const noexcept { return !is_reading_paused_; }

    std::size_t unsent_bytes();
    std::size_t unread_bytes() { return pending(incoming_.ptr()); }
    void set_write_limits(std::size_t high, std::size_t low);
    void set_read_limits(std::size_t high, std::size_t low);

    int traverse(visitproc visit, void* arg);
    void hide() noexcept {}  // nobody finds it but by its object
    void clear();

    PyObject* protocol() const noexcept { return protocol_.ptr(); }
    PyObject* below() const noexcept { return below_.ptr(); }
    PyObject* incoming() const noexcept { return incoming_.ptr(); }
    PyObject* outgoing() const noexcept { return outgoing_.ptr(); }
    bool is_protocol_paused() const noexcept { return is_protocol_paused_; }
    State state() const noexcept { return state_; }

    // Read and written by the Python half.
    bool is_closed = false;  // by the program, or lost
    std::size_t write_high = 512 * 1024;
    std::size_t write_low = 128 * 1024;
    std::size_t read_high = 256 * 1024;
    std::size_t read_low = 64 * 1024;

private:
    template <typename... Args>
    cpython::Ref ask_ssl(PyObject* name, Args*... arguments);
    template <typename... Args>
    void call_self(const char* name, const char* format, Args... arguments);
    std::size_t pending(PyObject* bio);
    void shake_hands();
    void start_shutdown();
    void flush();
    void shut_down();
    void discard();
    void read_bytes();
    void read_into_protocol();
    void deliver(std::span<const cpython::Ref> pieces);
    bool feed(PyObject* piece);
    cpython::Ref join(std::span<const cpython::Ref> pieces);
    cpython::Ref join(PyObject* sequence);
    void tell_eof();
    bool check_can_write();
    void write_unsent();
    bool write_first();
    void send_encrypted();
    void send_and_control();
    void control_protocol();
    void control_below();
    void tell_protocol(const char* method);
    void note_pause() noexcept;
    void end_stream() noexcept;
    void fail(const char* message);
    void fail_unless_base_exception(const char* message);

    // never changes
    Parts& parts_;
    PyObject* const self_;
    const bool is_inner_;

    cpython::Ref loop_;
    cpython::Ref protocol_;
    cpython::Ref below_;  // from connection_made to connection_lost
    cpython::Ref ssl_;
    cpython::Ref incoming_;
    cpython::Ref outgoing_;
    cpython::Ref buffer_;            // of get_buffer(), once it was called
    cpython::Ref stream_;            // stream.hpp; null if the protocol is not that of asyncio's streams
    TlsTransport* above_ = nullptr;  // the protocol, if it is a TLS connection too
    State state_ = State::kUnwrapped;
    Told told_;
    bool is_buffered_protocol_ = false;
    bool has_looked_for_stream_ = false;
    bool is_reading_paused_ = false;   // by the program
    bool is_protocol_paused_ = false;  // the program was asked not to write
    bool is_below_paused_ = false;     // the transport below was asked not to read
    bool is_below_full_ = false;       // it asked not to write
    bool is_writing_ = false;
    bool is_flush_waiting_ = false;
    bool has_eof_ = false;
    int lost_writes_ = 0;
    std::size_t discarded_ = 0;
    UnsentBytes unsent_;
};

/// The TLS connection that `protocol` is, or null.
[[nodiscard]] TlsTransport* find_tls_transport(const Parts& parts, PyObject* protocol) noexcept;

/// adopt_tls(_FlowControlMixin, SSLError, SSLWantReadError, SSLSyscallError): creates the class. Called with the first
/// TLS connection.
PyObject* adopt_tls(PyObject* module, PyObject* const* args, Py_ssize_t count);

}  // namespace gossamer::loop
