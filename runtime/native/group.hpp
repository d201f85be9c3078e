// Ranks on one host that work through a window of shared memory: they sum arrays and give each other theirs.
//
// The window holds a flag that ends every wait, a counter and a process id per rank, and two slots per rank. A call
// copies its input into one of the rank's slots, raises the rank's counter, waits until the counters of all peers have
// caught up, and reads the slots in rank order, so every rank gets the same bits. Two slots are enough: a rank that
// fills a slot again knows from the counters that everyone has left the call in between, and so has finished reading
// it.
//
// A wait spins for a short while and then sleeps on the peer's counter (futex(2)), so that whoever shares the cores
// gets them. Yielding the core instead would not do: since Linux 6.6 a process that yields again and again keeps others
// waiting for tens of milliseconds. A wait throws when the window is aborted or a peer's process is gone.
#pragma once

#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <string>

namespace shardyard {

using Clock = std::chrono::steady_clock;
// How long a wait spins: longer than ranks usually differ where each has cores of its own, since to wake a core costs
// more than that; briefly where they share cores and the peer may be waiting for this one.
constexpr auto kSpinOnOwnCores = std::chrono::microseconds(500);
constexpr auto kSpinOnSharedCores = std::chrono::microseconds(20);
constexpr long kPeerCheckNs = 100'000'000;
constexpr int kMaxRanks = 64;

struct alignas(64) RankState {
    std::atomic<std::uint64_t> posted;
    std::atomic<std::int32_t> process;
    std::atomic<std::uint32_t> sleepers;
};

struct alignas(64) Window {
    std::atomic<std::uint32_t> aborted;
    RankState ranks[kMaxRanks];
};
static_assert(std::atomic<std::uint64_t>::is_always_lock_free, "counters are shared between processes");

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// The kernel's 32-bit word of a counter: its lower half, which changes with every call.
inline std::uint32_t* futex_word(std::atomic<std::uint64_t>& counter) {
    static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the lower half comes first");
    return reinterpret_cast<std::uint32_t*>(&counter);
}

// Sleeps until the counter is no longer `seen`, or for kPeerCheckNs.
inline void sleep_on(std::atomic<std::uint64_t>& counter, std::uint64_t seen) {
    const timespec limit{0, kPeerCheckNs};
    syscall(SYS_futex, futex_word(counter), FUTEX_WAIT, static_cast<std::uint32_t>(seen), &limit, nullptr, 0);
}

inline void wake_all(std::atomic<std::uint64_t>& counter) {
    syscall(SYS_futex, futex_word(counter), FUTEX_WAKE, kMaxRanks, nullptr, nullptr, 0);
}

// Whether a process has ended, be it that its parent has not collected it yet (a zombie, which kill still finds).
inline bool is_gone(pid_t process) {
    if (kill(process, 0) && errno == ESRCH) return true;
    std::ifstream file("/proc/" + std::to_string(process) + "/stat");
    std::string line;
    std::getline(file, line);
    const auto name_end = line.rfind(')');
    return name_end != std::string::npos && name_end + 2 < line.size() && line[name_end + 2] == 'Z';
}

// Whether this rank was pinned to a part of the machine's cores, as ranks are where there are enough for all.
inline bool has_own_cores() {
    cpu_set_t mine;
    return sched_getaffinity(0, sizeof(mine), &mine) == 0 && CPU_COUNT(&mine) < sysconf(_SC_NPROCESSORS_ONLN);
}

// What a group has done so far: `bytes` that this rank put in; the time it waited for peers, and the time it copied and
// added.
struct Counters {
    std::uint64_t calls = 0, bytes = 0, waiting_ns = 0, moving_ns = 0;
};

class Group {
public:
    void join(void* memory, int rank, int size, std::size_t slot_bytes) {
        window_ = static_cast<Window*>(memory);
        slots_ = static_cast<char*>(memory) + sizeof(Window);
        rank_ = rank, size_ = size, slot_ = slot_bytes, calls_ = 0, counters_ = {};
        window_->ranks[rank].process.store(getpid(), std::memory_order_release);
    }

    void abort() {
        if (window_) window_->aborted.store(1, std::memory_order_release);
    }

    void sum(const float* in, float* out, std::size_t count) {
        in_parts(in, count, [&](std::uint64_t call, std::size_t first, std::size_t part) {
            float* to = out + first;
            const float* one = slot(0, call);
            if (size_ == 1) {
                std::memcpy(to, one, part * sizeof(float));
                return;
            }
            const float* two = slot(1, call);
            for (std::size_t i = 0; i < part; ++i) to[i] = one[i] + two[i];
            for (int rank = 2; rank < size_; ++rank) {
                const float* next = slot(rank, call);
                for (std::size_t i = 0; i < part; ++i) to[i] += next[i];
            }
        });
    }

    // Gives every rank the inputs of all, one after the other in rank order.
    void gather(const float* in, float* out, std::size_t count) {
        in_parts(in, count, [&](std::uint64_t call, std::size_t first, std::size_t part) {
            for (int rank = 0; rank < size_; ++rank) {
                std::memcpy(out + rank * count + first, slot(rank, call), part * sizeof(float));
            }
        });
    }

    const Counters& counters() const { return counters_; }

private:
    float* slot(int rank, std::uint64_t call) const {
        return reinterpret_cast<float*>(slots_ + (2 * rank + (call & 1)) * slot_);
    }

    // Brings `in` before all ranks, as much at a time as a slot holds; `read` takes what lies in the slots of a call.
    template <typename Read>
    void in_parts(const float* in, std::size_t count, Read read) {
        if (!window_) throw std::runtime_error("the group of this rank has no window");
        const std::size_t most = slot_ / sizeof(float);
        counters_.calls += 1, counters_.bytes += count * sizeof(float);
        for (std::size_t first = 0; first < count; first += most) {
            const std::size_t part = std::min(most, count - first);
            const auto started = Clock::now();
            const std::uint64_t call = post(in + first, part);
            const auto posted = Clock::now();
            for (int peer = 0; peer < size_; ++peer) wait(peer, call);
            const auto met = Clock::now();
            read(call, first, part);
            counters_.waiting_ns += nanoseconds(met - posted);
            counters_.moving_ns += nanoseconds(posted - started + (Clock::now() - met));
        }
    }

    std::uint64_t post(const float* in, std::size_t count) {
        const std::uint64_t call = ++calls_;
        if (call == 1) spin_ = has_own_cores() ? kSpinOnOwnCores : kSpinOnSharedCores;
        std::memcpy(slot(rank_, call), in, count * sizeof(float));
        // In this order in all eyes, so that either we see the sleeper or it sees the counter.
        RankState& own = window_->ranks[rank_];
        own.posted.store(call, std::memory_order_seq_cst);
        if (own.sleepers.load(std::memory_order_seq_cst)) wake_all(own.posted);
        return call;
    }

    static std::uint64_t nanoseconds(Clock::duration time) {
        return std::chrono::duration_cast<std::chrono::nanoseconds>(time).count();
    }

    void wait(int peer, std::uint64_t call) const {
        const auto& posted = window_->ranks[peer].posted;
        if (posted.load(std::memory_order_acquire) >= call) return;
        const auto started = Clock::now();
        while (Clock::now() - started < spin_) {
            for (int i = 0; i < 8; ++i) relax();
            if (posted.load(std::memory_order_acquire) >= call) return;
        }
        RankState& state = window_->ranks[peer];
        state.sleepers.fetch_add(1, std::memory_order_seq_cst);
        std::uint64_t seen;
        while ((seen = state.posted.load(std::memory_order_seq_cst)) < call) {
            sleep_on(state.posted, seen);
            if (window_->aborted.load(std::memory_order_acquire)) {
                throw std::runtime_error("all-reduce: the world is being shut down");
            }
            if (state.posted.load(std::memory_order_acquire) < call) check_alive(peer);
        }
        state.sleepers.fetch_sub(1, std::memory_order_seq_cst);
    }

    void check_alive(int peer) const {
        const pid_t process = window_->ranks[peer].process.load(std::memory_order_acquire);
        if (process && is_gone(process)) {
            throw std::runtime_error("all-reduce: the process of tensor-parallel rank " + std::to_string(peer) + " is gone");
        }
    }

    Window* window_ = nullptr;
    char* slots_ = nullptr;
    int rank_ = 0, size_ = 0;
    std::size_t slot_ = 0;
    std::uint64_t calls_ = 0;
    Counters counters_;
    Clock::duration spin_ = kSpinOnSharedCores;
};

}  // namespace shardyard
