// SPDX-License-Identifier: Apache-2.0
// Wake-ups from other threads to a hub: a lock-free stack that many push to and the hub empties at once.
//
// A letter is in the box at most once: `post` returns false when it already lies there, which loses nothing: its receiver
// will look again, and sees what the poster did before. So the flag is exchanged on both sides: take() reads the last
// post's exchange and synchronises with it. (With a plain store there, x86-64 may let the receiver look before the store is
// seen: the poster then finds the letter still posted, the receiver finds nothing new, and the wake-up is lost.) A letter must outlive its stay in the box; fibers' records are pooled and never
// returned to the kernel while posted.
#pragma once

#include <atomic>

namespace gossamer::core {

struct Letter {
    Letter* next = nullptr;              // owned by the box while posted
    std::atomic<bool> is_posted{false};  // any thread
};

class Mailbox final {
public:
    /// Posts `letter`. Returns whether it is new in the box. Thread: any.
    bool post(Letter& letter) noexcept {
        // acquire: pairs with take()'s release, so that the next link is ours to write. release: with take()'s acquire, so
        // that whoever receives the letter sees what we did before, also when it was posted already.
        if (letter.is_posted.exchange(true, std::memory_order_acq_rel)) {
            return false;
        }
        Letter* head = head_.load(std::memory_order_relaxed);
        do {
            letter.next = head;
            // seq_cst: ordered against the hub's "asleep" flag; see Hub::post.
        } while (!head_.compare_exchange_weak(head, &letter));
        return true;
    }

    bool is_empty() const noexcept { return head_.load() == nullptr; }

    /// Takes everything, oldest first, and calls `receive(letter)` for each. Thread: the hub's.
    template <typename Receive>
    void take(Receive receive) noexcept {
        Letter* letter = reversed(head_.exchange(nullptr));
        while (letter != nullptr) {
            Letter* next = letter->next;
            // release: pairs with post()'s acquire; the link may be rewritten from here on. acquire: with its release.
            letter->is_posted.exchange(false, std::memory_order_acq_rel);
            receive(*letter);
            letter = next;
        }
    }

private:
    static Letter* reversed(Letter* letter) noexcept {
        Letter* result = nullptr;
        while (letter != nullptr) {
            Letter* next = letter->next;
            letter->next = result;
            result = letter;
            letter = next;
        }
        return result;
    }

    std::atomic<Letter*> head_{nullptr};
};

}  // namespace gossamer::core
