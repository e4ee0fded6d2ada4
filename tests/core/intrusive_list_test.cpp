// SPDX-License-Identifier: Apache-2.0
#include "core/intrusive_list.hpp"

#include <gtest/gtest.h>
#include <vector>

namespace gossamer::core {
namespace {

struct Base {
    virtual ~Base() = default;
    int before = 0;
};

/// The hook is not at the element's beginning, as in a virtual thread.
struct Element final : Base, ListHook {
    explicit Element(int number) : value(number) {}
    int value;
};

std::vector<int> values_of(IntrusiveList<Element>& list) {
    std::vector<int> values;
    for (Element* element = list.front(); element != nullptr; element = list.next_of(*element)) {
        values.push_back(element->value);
    }
    return values;
}

TEST(IntrusiveList, IsFirstInFirstOut) {
    IntrusiveList<Element> list;
    Element a(1);
    Element b(2);
    list.push_back(a);
    list.push_back(b);

    EXPECT_EQ(&a, list.pop_front());
    EXPECT_EQ(&b, list.pop_front());
    EXPECT_EQ(nullptr, list.pop_front());
    EXPECT_TRUE(list.is_empty());
}

TEST(IntrusiveList, UnlinksFromEachPlace) {
    for (int place = 0; place < 3; ++place) {
        IntrusiveList<Element> list;
        Element elements[] = {Element(0), Element(1), Element(2)};
        std::vector<int> expected{0, 1, 2};
        for (Element& element : elements) {
            list.push_back(element);
        }

        elements[place].unlink();
        expected.erase(expected.begin() + place);

        EXPECT_EQ(expected, values_of(list));
        EXPECT_FALSE(elements[place].is_linked());
    }
}

TEST(IntrusiveList, UnlinkedElementCanBeQueuedAgain) {
    IntrusiveList<Element> list;
    Element a(1);
    Element b(2);
    list.push_back(a);
    list.push_back(b);

    a.unlink();
    list.push_back(a);

    EXPECT_EQ((std::vector<int>{2, 1}), values_of(list));
}

TEST(IntrusiveList, ElementMayBeUnlinkedWhileTheListIsWalkedWithItsSuccessor) {
    IntrusiveList<Element> list;
    Element elements[] = {Element(0), Element(1), Element(2)};
    for (Element& element : elements) {
        list.push_back(element);
    }

    for (Element* element = list.front(); element != nullptr;) {
        Element* next = list.next_of(*element);
        element->unlink();
        element = next;
    }

    EXPECT_TRUE(list.is_empty());
}

}  // namespace
}  // namespace gossamer::core
