// Errors that a user reads: without the place in our sources that STD_TORCH_CHECK puts in front.
#pragma once

#include <cstdint>
#include <new>
#include <sstream>
#include <stdexcept>
#include <string>

namespace mirnet_fast {

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

}  // namespace mirnet_fast

#define MIRNET_CHECK(condition, ...)                    \
  do {                                                  \
    if (!(condition)) ::mirnet_fast::fail(__VA_ARGS__); \
  } while (false)
