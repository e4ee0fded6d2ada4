// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "loop/tls_transport.hpp"

#include <algorithm>
#include <vector>

#include "cpython/error.hpp"
#include "loop/event_loop.hpp"
#include "loop/stream.hpp"

namespace gossamer::loop {

using cpython::borrow;
using cpython::ErrorSet;
using cpython::Ref;
using cpython::steal;

namespace {

constexpr std::size_t kLeastRead = 256;  // of one call of read()
constexpr std::size_t kMostRead = 256 * 1024;
constexpr std::size_t kMostEncrypted = 64 * 1024;    // at once
constexpr std::size_t kMostDiscarded = 1024 * 1024;  // after our close_notify
constexpr std::size_t kLargestJoin = 16 * 1024;      // a TLS record
constexpr Py_ssize_t kBufferBytes = 64 * 1024;       // of get_buffer()
constexpr int kLostWritesBeforeWarning = 5;

/// A memoryview of bytes that outlive it.
Ref view_of(const char* bytes, std::size_t size, int flags) {
    // Safety: PyBUF_READ makes it read-only.
    return steal(PyMemoryView_FromMemory(const_cast<char*>(bytes), static_cast<Py_ssize_t>(size), flags));
}

std::size_t size_of(PyObject* number) {
    const std::size_t size = PyLong_AsSize_t(number);
    if (size == static_cast<std::size_t>(-1) && PyErr_Occurred()) {
        throw ErrorSet{};
    }
    return size;
}

/// Sets a flag for as long as it lives.
class Flag final {
public:
    explicit Flag(bool& flag) noexcept : flag_(flag) { flag_ = true; }
    Flag(const Flag&) = delete;
    Flag& operator=(const Flag&) = delete;
    ~Flag() { flag_ = false; }

private:
    bool& flag_;
};

}  // namespace

TlsTransport::TlsTransport(Parts& parts, PyObject* self, const TlsSetup& setup)
    : parts_(parts),
      self_(self),
      is_inner_(setup.is_inner),
      loop_(borrow(setup.loop)),
      ssl_(borrow(setup.ssl)),
      incoming_(borrow(setup.incoming)),
      outgoing_(borrow(setup.outgoing)),
      told_(setup.has_protocol_begun ? Told::kMade : Told::kNothing) {
    set_protocol(setup.protocol);
}

void TlsTransport::set_protocol(PyObject* protocol) {
    is_buffered_protocol_ = is_buffered_protocol(parts_, protocol);
    end_stream();
    has_looked_for_stream_ = false;
    above_ = find_tls_transport(parts_, protocol);
    borrow(protocol).swap(protocol_);
}

/// Calls a method of the SSL object. Null: it needs more from the other side.
template <typename... Args>
Ref TlsTransport::ask_ssl(PyObject* name, Args*... arguments) {
    PyObject* args[] = {ssl_.ptr(), arguments...};
    PyObject* answer = PyObject_VectorcallMethod(name, args, std::size(args) | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr);
    if (answer == nullptr) {
        if (PyErr_ExceptionMatches(parts_.tls.want_read_error) == 0 &&
            PyErr_ExceptionMatches(parts_.tls.syscall_error) == 0) {
            throw ErrorSet{};
        }
        PyErr_Clear();
    }
    return Ref::steal_or_null(answer);
}

template <typename... Args>
void TlsTransport::call_self(const char* name, const char* format, Args... arguments) {
    steal(PyObject_CallMethod(self_, name, format, arguments...));
}

/// How much a MemoryBIO holds.
std::size_t TlsTransport::pending(PyObject* bio) {
    return bio == nullptr ? 0 : size_of(steal(PyObject_GetAttr(bio, parts_.tls.pending_name)).ptr());
}

// ---- from the transport below ----

void TlsTransport::take(const char* bytes, std::size_t size) {
    if (incoming_) {
        const Ref view = view_of(bytes, size, PyBUF_READ);
        steal(PyObject_CallMethodOneArg(incoming_.ptr(), parts_.tls.write_name, view.ptr()));
    }
}

Ref TlsTransport::get_buffer() {
    if (!buffer_) {
        buffer_ = steal(PyByteArray_FromStringAndSize(nullptr, kBufferBytes));
    }
    return steal(PyMemoryView_FromObject(buffer_.ptr()));
}

void TlsTransport::update_buffer(Py_ssize_t size) {
    if (!buffer_ || size < 0 || size > kBufferBytes) {
        cpython::raise(PyExc_ValueError, "buffer_updated() of more than get_buffer() gave");
    }
    take(PyByteArray_AS_STRING(buffer_.ptr()), static_cast<std::size_t>(size));
    proceed();
}

void TlsTransport::proceed() {
    switch (state_) {
        case State::kUnwrapped:
            break;
        case State::kHandshake:
            shake_hands();
            break;
        case State::kWrapped:
            read();
            break;
        case State::kFlushing:
            flush();
            break;
        case State::kShutdown:
            shut_down();
            break;
    }
}

bool TlsTransport::reach_eof() {
    has_eof_ = true;
    if (state_ == State::kHandshake) {
        call_self("_on_handshake_complete", "O", PyExc_ConnectionResetError);
    } else if (state_ == State::kWrapped) {
        state_ = State::kFlushing;
        if (!is_reading_paused_) {
            proceed();
        }
    } else {
        proceed();
    }
    return state_ == State::kFlushing;
}

void TlsTransport::resume_writing() {
    is_below_full_ = false;
    if (is_flush_waiting_) {
        flush();
        return;
    }
    if (state_ == State::kWrapped) {
        write_unsent();
    }
    send_and_control();
}

Ref TlsTransport::lose() {
    is_closed = true;
    ++lost_writes_;
    const bool was_told = told_ == Told::kMade || told_ == Told::kEof;
    state_ = State::kUnwrapped;
    is_flush_waiting_ = false;
    above_ = nullptr;
    unsent_.clear();
    end_stream();
    const Ref below = std::move(below_);
    Ref protocol = std::move(protocol_);
    if (outgoing_) {
        steal(PyObject_CallMethodNoArgs(outgoing_.ptr(), parts_.tls.read_name));
    }
    if (!was_told) {
        return Ref();
    }
    told_ = Told::kLost;
    return protocol;
}

// ---- the handshake ----

void TlsTransport::begin_handshake(PyObject* below) {
    borrow(below).swap(below_);
    state_ = State::kHandshake;
    shake_hands();
}

void TlsTransport::shake_hands() {
    bool is_done = false;
    try {
        is_done = static_cast<bool>(ask_ssl(parts_.tls.do_handshake_name));
    } catch (const ErrorSet&) {
        if (PyErr_ExceptionMatches(parts_.tls.ssl_error) == 0) {
            throw;
        }
        const Ref error = Ref::steal_or_null(PyErr_GetRaisedException());
        call_self("_on_handshake_complete", "O", error.ptr());
        return;
    }
    if (is_done) {
        call_self("_on_handshake_complete", "O", Py_None);
    } else {
        send_and_control();
    }
}

void TlsTransport::end_handshake(bool was_good) { state_ = was_good ? State::kWrapped : State::kUnwrapped; }

Ref TlsTransport::note_made() {
    if (told_ != Told::kNothing) {
        return Ref();
    }
    told_ = Told::kMade;
    return borrow(protocol_.ptr());
}

// ---- the end ----

void TlsTransport::close() {
    if (is_closed) {
        return;
    }
    is_closed = true;
    if (state_ == State::kFlushing) {
        flush();  // the other side has ended, and the program has not read everything: now it never will
    } else {
        start_shutdown();
    }
}

bool TlsTransport::is_closing() {
    if (is_closed || !below_) {
        return is_closed;
    }
    const Ref answer = steal(PyObject_CallMethod(below_.ptr(), "is_closing", nullptr));
    const int is_true = PyObject_IsTrue(answer.ptr());
    cpython::check(is_true);
    return is_true != 0;
}

void TlsTransport::start_shutdown() {
    switch (state_) {
        case State::kUnwrapped:
        case State::kFlushing:
        case State::kShutdown:
            break;
        case State::kHandshake:
            is_closed = true;
            abort(Py_None);
            break;
        case State::kWrapped:
            is_closed = true;
            state_ = State::kFlushing;
            call_self("_start_shutdown_timer", nullptr);
            flush();
            break;
    }
}

/// Sends everything, then goes on with the shutdown; called again when the transport below has taken something.
void TlsTransport::flush() {
    read();
    if (state_ != State::kFlushing) {
        return;  // the program, or the other side, did more than that
    }
    write_unsent();
    is_flush_waiting_ = !unsent_.is_empty();
    if (is_flush_waiting_) {
        if (has_eof_) {
            call_self("_start_shutdown_timer", nullptr);
        }
        send_and_control();
        return;
    }
    state_ = State::kShutdown;
    shut_down();
}

void TlsTransport::shut_down() {
    bool is_done = true;
    try {
        if (!has_eof_) {
            discard();
            is_done = static_cast<bool>(ask_ssl(is_inner_ ? parts_.tls.shutdown_name : parts_.tls.unwrap_name));
        }
    } catch (const ErrorSet&) {
        if (PyErr_ExceptionMatches(parts_.tls.ssl_error) == 0) {
            throw;
        }
        const Ref error = Ref::steal_or_null(PyErr_GetRaisedException());
        call_self("_on_shutdown_complete", "O", error.ptr());
        return;
    }
    send_and_control();
    if (is_done) {
        tell_eof();
        call_self("_on_shutdown_complete", "O", Py_None);
    }
}

/// Reads what the other side has sent before it knew that we close: with that unread there is no end of TLS. One that
/// goes on to send is not listened to for ever; the shutdown then fails.
void TlsTransport::discard() {
    const Ref number = steal(PyLong_FromSize_t(kMostEncrypted));
    try {
        while (discarded_ < kMostDiscarded) {
            const Ref piece = ask_ssl(parts_.tls.read_name, number.ptr());
            const Py_ssize_t size = piece ? PyObject_Length(piece.ptr()) : 0;
            cpython::check(size < 0 ? -1 : 0);
            if (size == 0) {
                break;
            }
            discarded_ += static_cast<std::size_t>(size);
        }
    } catch (const ErrorSet&) {
        if (PyErr_ExceptionMatches(parts_.tls.ssl_error) == 0) {
            throw;
        }
        PyErr_Clear();  // the end, or an error that the shutdown meets too
    }
    control_below();
}

void TlsTransport::abort(PyObject* error) {
    state_ = State::kUnwrapped;
    if (below_) {
        const Ref below = borrow(below_.ptr());
        steal(PyObject_CallMethod(below.ptr(), "_force_close", "O", error));
    }
}

/// What is raised ends the connection, unless it ends the program. Throws ErrorSet then.
void TlsTransport::fail(const char* message) {
    if (PyErr_ExceptionMatches(PyExc_KeyboardInterrupt) != 0 || PyErr_ExceptionMatches(PyExc_SystemExit) != 0) {
        throw ErrorSet{};
    }
    const Ref error = Ref::steal_or_null(PyErr_GetRaisedException());
    call_self("_fatal_error", "Os", error.ptr(), message);
}

void TlsTransport::fail_unless_base_exception(const char* message) {
    if (PyErr_ExceptionMatches(PyExc_Exception) == 0) {
        throw ErrorSet{};
    }
    fail(message);
}

// ---- reading ----

void TlsTransport::read() {
    if (state_ != State::kWrapped && state_ != State::kFlushing) {
        return;
    }
    try {
        if (!is_reading_paused_) {
            if (is_buffered_protocol_ && above_ == nullptr) {
                read_into_protocol();
            } else {
                read_bytes();
            }
        }
        if (state_ == State::kWrapped) {
            write_unsent();
        }
        send_and_control();
        control_below();
    } catch (const ErrorSet&) {
        fail_unless_base_exception("Fatal error on SSL protocol");
    }
}

void TlsTransport::read_bytes() {
    std::vector<Ref> pieces;
    bool is_end = false;
    std::size_t encrypted = unread_bytes();
    while (true) {
        const std::size_t wanted = std::clamp(encrypted, kLeastRead, kMostRead);
        const Ref number = steal(PyLong_FromSize_t(wanted));
        Ref piece = ask_ssl(parts_.tls.read_name, number.ptr());
        if (!piece) {
            break;
        }
        const Py_ssize_t size = PyObject_Length(piece.ptr());
        cpython::check(size < 0 ? -1 : 0);
        is_end = size == 0;
        if (is_end) {
            break;
        }
        pieces.push_back(std::move(piece));
        encrypted = unread_bytes();
        if (is_inner_ && static_cast<std::size_t>(size) < wanted && encrypted == 0) {
            break;  // another read() would only say, at ten times the cost, that there is nothing
        }
    }
    deliver(pieces);
    if (is_end) {
        tell_eof();
        start_shutdown();
    }
}

/// Gives what was read to the protocol above; to one that runs Python code, in one call.
void TlsTransport::deliver(std::span<const Ref> pieces) {
    if (pieces.empty()) {
        return;
    }
    const Ref protocol = borrow(protocol_.ptr());
    if (above_ != nullptr) {
        TlsTransport& above = *above_;
        for (const Ref& piece : pieces) {
            const View view(piece.ptr(), PyBUF_SIMPLE);
            above.take(view.bytes(), view.size());
        }
        above.proceed();
        return;
    }
    if (!has_looked_for_stream_) {
        has_looked_for_stream_ = true;
        if (!loop_of(loop_.ptr()).is_debugging) {
            stream_ = open_stream(loop_.ptr(), protocol.ptr());
        }
        note_pause();
    }
    while (!pieces.empty() && stream_ && feed(pieces.front().ptr())) {
        pieces = pieces.subspan(1);
    }
    if (!pieces.empty()) {
        const Ref data = pieces.size() == 1 ? borrow(pieces.front().ptr()) : join(pieces);
        steal(PyObject_CallMethodOneArg(protocol.ptr(), parts_.data_received_name, data.ptr()));
    }
}

/// Returns whether the protocol was one of asyncio's streams, whose reader now has the data.
bool TlsTransport::feed(PyObject* piece) {
    const Ref stream = borrow(stream_.ptr());
    return PyBytes_CheckExact(piece) &&
           feed_stream(stream.ptr(), PyBytes_AS_STRING(piece), static_cast<std::size_t>(PyBytes_GET_SIZE(piece)));
}

void TlsTransport::note_pause() noexcept {
    if (stream_) {
        set_writing_paused(stream_.ptr(), is_protocol_paused_);
    }
}

void TlsTransport::end_stream() noexcept {
    if (const Ref stream = std::move(stream_)) {
        close_stream(stream.ptr());
    }
}

Ref TlsTransport::join(std::span<const Ref> pieces) {
    const Ref all = steal(PyTuple_New(static_cast<Py_ssize_t>(pieces.size())));
    Py_ssize_t index = 0;
    for (const Ref& piece : pieces) {
        PyTuple_SET_ITEM(all.ptr(), index++, Py_NewRef(piece.ptr()));
    }
    return join(all.ptr());
}

Ref TlsTransport::join(PyObject* sequence) {
    return steal(PyObject_CallMethodOneArg(parts_.tls.no_bytes, parts_.tls.join_name, sequence));
}

void TlsTransport::read_into_protocol() {
    const Ref protocol = borrow(protocol_.ptr());
    std::size_t filled = 0;
    bool is_end = false;
    bool is_full = false;
    {
        const Ref hint = steal(PyLong_FromSize_t(unread_bytes()));
        const Ref buffer = steal(PyObject_CallMethodOneArg(protocol.ptr(), parts_.get_buffer_name, hint.ptr()));
        const View view(buffer.ptr(), PyBUF_WRITABLE);
        if (view.size() == 0) {
            cpython::raise(PyExc_RuntimeError, "get_buffer() returned an empty buffer");
        }
        while (!is_full && !is_end) {
            const std::size_t wanted = view.size() - filled;
            const Ref number = steal(PyLong_FromSize_t(wanted));
            const Ref place = view_of(view.bytes() + filled, wanted, PyBUF_WRITE);
            const Ref count = ask_ssl(parts_.tls.read_name, number.ptr(), place.ptr());
            if (!count) {
                break;
            }
            const std::size_t size = size_of(count.ptr());
            filled += size;
            is_end = size == 0;
            is_full = filled == view.size();
            if (is_inner_ && !is_full && unread_bytes() == 0) {
                break;
            }
        }
    }
    if (filled > 0) {
        const Ref count = steal(PyLong_FromSize_t(filled));
        steal(PyObject_CallMethodOneArg(protocol.ptr(), parts_.buffer_updated_name, count.ptr()));
    }
    if (is_full) {
        const Ref again = steal(PyObject_GetAttrString(self_, "_do_read"));
        steal(PyObject_CallMethod(loop_.ptr(), "call_soon", "O", again.ptr()));
    }
    if (is_end) {
        tell_eof();
        start_shutdown();
    }
}

void TlsTransport::tell_eof() {
    if (told_ != Told::kMade) {
        return;
    }
    told_ = Told::kEof;
    try {
        const Ref protocol = borrow(protocol_.ptr());
        const Ref answer = steal(PyObject_CallMethodNoArgs(protocol.ptr(), parts_.eof_received_name));
        const int keeps_open = PyObject_IsTrue(answer.ptr());
        cpython::check(keeps_open);
        if (keeps_open != 0) {
            call_self("_warn_of_open_end", nullptr);
        }
    } catch (const ErrorSet&) {
        fail("Error calling eof_received()");
    }
}

void TlsTransport::resume_reading() {
    if (is_reading_paused_) {
        is_reading_paused_ = false;
        const Ref resume = steal(PyObject_GetAttrString(self_, "_resume"));
        steal(PyObject_CallMethod(loop_.ptr(), "call_soon", "O", resume.ptr()));
    }
}

void TlsTransport::resume() {
    if (state_ != State::kHandshake) {
        proceed();
    }
}

void TlsTransport::set_read_limits(std::size_t high, std::size_t low) {
    read_high = high;
    read_low = low;
    control_below();
}

/// Has the transport below read for as long as the program reads what has come.
void TlsTransport::control_below() {
    if (!below_) {
        return;
    }
    const std::size_t size = unread_bytes();
    if (!is_below_paused_ && size > 0 && size >= read_high) {
        is_below_paused_ = true;
        steal(PyObject_CallMethod(below_.ptr(), "pause_reading", nullptr));
    } else if (is_below_paused_ && size <= read_low) {
        is_below_paused_ = false;
        steal(PyObject_CallMethod(below_.ptr(), "resume_reading", nullptr));
    }
}

// ---- writing ----

/// Returns whether what is written goes anywhere.
bool TlsTransport::check_can_write() {
    if (state_ == State::kHandshake || state_ == State::kWrapped) {
        return true;
    }
    if (lost_writes_ >= kLostWritesBeforeWarning) {
        call_self("_warn_of_lost_write", nullptr);
    }
    ++lost_writes_;
    return false;
}

void TlsTransport::keep_unsent(PyObject* object) {
    const View view(object, PyBUF_SIMPLE);
    if (view.size() > 0) {
        unsent_.keep(object, view.bytes(), view.size());
    }
}

void TlsTransport::write(PyObject* object) {
    if (!PyBytes_Check(object) && !PyByteArray_Check(object) && !PyMemoryView_Check(object)) {
        cpython::raise(PyExc_TypeError, "data: expecting a bytes-like instance, got %.200s", Py_TYPE(object)->tp_name);
    }
    const Py_ssize_t length = PyObject_Length(object);
    cpython::check(length < 0 ? -1 : 0);
    if (length > 0 && check_can_write()) {
        keep_unsent(object);
        if (state_ == State::kWrapped) {
            write_unsent();
            send_and_control();
        }
    }
}

void TlsTransport::write_several(PyObject* objects) {
    const Ref sequence = steal(PySequence_Fast(objects, "writelines() takes an iterable of bytes-like objects"));
    if (!check_can_write()) {
        return;
    }
    const Py_ssize_t count = PySequence_Fast_GET_SIZE(sequence.ptr());
    std::size_t total = 0;
    for (Py_ssize_t index = 0; index < count; ++index) {
        total += View(PySequence_Fast_GET_ITEM(sequence.ptr(), index), PyBUF_SIMPLE).size();
    }
    if (total <= kLargestJoin) {  // one record is cheaper than several
        keep_unsent(join(sequence.ptr()).ptr());
    } else {
        for (Py_ssize_t index = 0; index < PySequence_Fast_GET_SIZE(sequence.ptr()); ++index) {
            keep_unsent(PySequence_Fast_GET_ITEM(sequence.ptr(), index));
        }
    }
    if (state_ == State::kWrapped) {
        write_unsent();
        send_and_control();
    }
}

/// Encrypts and sends what waits, as long as the transport below takes it.
void TlsTransport::write_unsent() {
    if (is_writing_) {
        return;
    }
    const Flag writing(is_writing_);
    try {
        while (!unsent_.is_empty() && !is_below_full_ && write_first()) {
            if (!unsent_.is_empty()) {
                send_encrypted();
            }
        }
    } catch (const ErrorSet&) {
        fail_unless_base_exception("Fatal error on SSL protocol");
    }
}

/// Encrypts the beginning of what waits. Returns false if the SSL object needs something from the other side first: then
/// OpenSSL demands the very same again.
bool TlsTransport::write_first() {
    const UnsentBytes::Piece& first = unsent_.first();
    const Ref kept = borrow(first.kept.ptr());  // for as long as OpenSSL reads from it
    const std::size_t size = std::min(first.size, kMostEncrypted);
    const bool is_whole = size == static_cast<std::size_t>(PyBytes_GET_SIZE(kept.ptr()));
    const Ref piece = is_whole    ? borrow(kept.ptr())
                      : is_inner_ ? view_of(first.bytes, size, PyBUF_READ)
                                  : steal(PyBytes_FromStringAndSize(first.bytes, static_cast<Py_ssize_t>(size)));
    const Ref answer = ask_ssl(parts_.tls.write_name, piece.ptr());
    if (!answer) {
        return false;
    }
    unsent_.drop(std::min({size_of(answer.ptr()), size, unsent_.size()}));  // a loss may have dropped everything
    return true;
}

/// Sends what the SSL object has encrypted.
void TlsTransport::send_encrypted() {
    if (!below_) {
        return;
    }
    const Ref data = steal(PyObject_CallMethodNoArgs(outgoing_.ptr(), parts_.tls.read_name));
    if (PyBytes_GET_SIZE(data.ptr()) > 0) {
        const Ref below = borrow(below_.ptr());
        steal(PyObject_CallMethodOneArg(below.ptr(), parts_.tls.write_name, data.ptr()));
    }
}

void TlsTransport::send_and_control() {
    if (!is_below_full_) {
        send_encrypted();
    }
    control_protocol();
}

std::size_t TlsTransport::unsent_bytes() { return pending(outgoing_.ptr()) + unsent_.size(); }

void TlsTransport::set_write_limits(std::size_t high, std::size_t low) {
    write_high = high;
    write_low = low;
    control_protocol();
}

/// Has the program write for as long as the transport below takes it.
void TlsTransport::control_protocol() {
    const std::size_t size = is_below_full_ ? unsent_bytes() : unsent_.size();
    if (!is_protocol_paused_ && size > 0 && size >= write_high) {
        is_protocol_paused_ = true;
        note_pause();
        tell_protocol("pause_writing");
    } else if (is_protocol_paused_ && size <= write_low) {
        is_protocol_paused_ = false;
        note_pause();
        tell_protocol("resume_writing");
    }
}

void TlsTransport::tell_protocol(const char* method) {
    if (!protocol_) {
        return;
    }
    const Ref protocol = borrow(protocol_.ptr());
    const Ref result = Ref::steal_or_null(PyObject_CallMethod(protocol.ptr(), method, nullptr));
    if (result) {
        return;
    }
    if (PyErr_ExceptionMatches(PyExc_KeyboardInterrupt) != 0 || PyErr_ExceptionMatches(PyExc_SystemExit) != 0) {
        throw ErrorSet{};
    }
    const Ref error = Ref::steal_or_null(PyErr_GetRaisedException());
    call_self("_report", "Os", error.ptr(), method);
}

int TlsTransport::traverse(visitproc visit, void* arg) {
    for (const Ref* ref : {&loop_, &protocol_, &below_, &ssl_, &incoming_, &outgoing_, &buffer_, &stream_}) {
        Py_VISIT(ref->ptr());
    }
    return 0;
}

void TlsTransport::clear() {
    state_ = State::kUnwrapped;
    above_ = nullptr;
    end_stream();
    const Ref protocol = std::move(protocol_);
    const Ref below = std::move(below_);
    const Ref ssl = std::move(ssl_);
    const Ref incoming = std::move(incoming_);
    const Ref outgoing = std::move(outgoing_);
    const Ref buffer = std::move(buffer_);
    const Ref loop = std::move(loop_);
    unsent_.clear();
}

}  // namespace gossamer::loop
