// SPDX-License-Identifier: Apache-2.0
#include "core/file_descriptor.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <type_traits>

namespace gossamer::core {
namespace {

static_assert(!std::is_copy_constructible_v<FileDescriptor> && !std::is_copy_assignable_v<FileDescriptor>);

bool is_open(int fd) { return ::fcntl(fd, F_GETFD) >= 0; }

TEST(FileDescriptor, ClosesWhenItGoes) {
    const int fd = ::eventfd(0, 0);
    {
        const FileDescriptor owner(fd);
        EXPECT_TRUE(is_open(fd));
    }

    EXPECT_FALSE(is_open(fd));
}

TEST(FileDescriptor, IsEmptyByDefaultAndAfterAMove) {
    FileDescriptor source(::eventfd(0, 0));
    const int fd = source.get();

    const FileDescriptor target(std::move(source));

    EXPECT_EQ(-1, FileDescriptor().get());
    EXPECT_EQ(-1, source.get());
    EXPECT_EQ(fd, target.get());
    EXPECT_TRUE(is_open(fd));
}

// Assignment by swapping kept the old descriptor open for as long as the source lived.
TEST(FileDescriptor, AssignmentClosesWhatWasThereAtOnce) {
    FileDescriptor target(::eventfd(0, 0));
    FileDescriptor source(::eventfd(0, 0));
    const int old_fd = target.get();
    const int new_fd = source.get();

    target = std::move(source);

    EXPECT_FALSE(is_open(old_fd));
    EXPECT_EQ(new_fd, target.get());
    EXPECT_EQ(-1, source.get());
}

TEST(FileDescriptor, AssignmentToItselfChangesNothing) {
    FileDescriptor owner(::eventfd(0, 0));
    FileDescriptor& same = owner;
    const int fd = owner.get();

    owner = std::move(same);

    EXPECT_EQ(fd, owner.get());
    EXPECT_TRUE(is_open(fd));
}

}  // namespace
}  // namespace gossamer::core
