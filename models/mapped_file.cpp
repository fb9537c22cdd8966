#include "models/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>

#include "kernels/check.h"

namespace spinfer {
namespace {

/// Only what a signal handler may do.
extern "C" void say_and_end(int) {
  constexpr char kLine[] =
      "spinfer: a mapped file cannot be read any more: it was cut off, or its disk failed\n";
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, kLine, sizeof(kLine) - 1);
  ::_exit(1);
}

}  // namespace

void end_where_pages_are_lost() {
  struct sigaction action {};
  action.sa_handler = say_and_end;
  ::sigaction(SIGBUS, &action, nullptr);
}

std::shared_ptr<const MappedFile> MappedFile::open(const std::filesystem::path& path) {
  struct Descriptor {
    int fd;
    ~Descriptor() {
      if (fd >= 0) ::close(fd);
    }
  };
  // O_NONBLOCK: opening a FIFO must not wait for a writer.
  const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  check(file.fd >= 0, "{}: cannot be opened: {}", path.string(), std::strerror(errno));
  struct stat status {};
  check_system(::fstat(file.fd, &status) == 0, "{}", path.string());
  check(S_ISREG(status.st_mode), "{}: not a regular file", path.string());
  check(status.st_size > 0, "{}: the file is empty", path.string());
  const size_t size = size_t(status.st_size);
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.fd, 0);
  check(data != MAP_FAILED, "{}: cannot be mapped ({} bytes): {}", path.string(), size, std::strerror(errno));
  return std::shared_ptr<const MappedFile>(new MappedFile(path, {static_cast<const std::byte*>(data), size}));
}

MappedFile::~MappedFile() {
  ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

void MappedFile::prefetch(std::span<const std::byte> part) const {
  if (part.empty()) return;
  const auto page = uintptr_t(::sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<uintptr_t>(part.data()) / page * page;
  const auto end = reinterpret_cast<uintptr_t>(part.data() + part.size());
  ::madvise(reinterpret_cast<void*>(begin), end - begin,
            MADV_WILLNEED);  // advice only: failure changes nothing
}

}  // namespace spinfer
