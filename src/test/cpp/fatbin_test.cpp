// The library holds CUDA code for each architecture that is asked for: fatbin_test LIBRARY sm_80 sm_90 compute_90.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

namespace {

template <typename T>
T read(const std::vector<char>& bytes, size_t at) {
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

// Entries by architecture, of every fat binary: a header of 16 bytes (magic, version, its size, size of what follows),
// then entries of a header and data each.
std::map<std::string, int> entries_of(const std::vector<char>& bytes) {
  constexpr uint32_t magic = 0xba55ed50;
  std::map<std::string, int> found;
  for (size_t at = 0; at + 16 <= bytes.size(); at += 8) {
    if (read<uint32_t>(bytes, at) != magic || read<uint16_t>(bytes, at + 4) != 1) continue;
    size_t entry = at + read<uint16_t>(bytes, at + 6);
    size_t end = entry + read<uint64_t>(bytes, at + 8);
    while (entry + 32 <= end && end <= bytes.size()) {
      const char* kind = read<uint16_t>(bytes, entry) == 1 ? "compute_" : "sm_";
      found[kind + std::to_string(read<uint32_t>(bytes, entry + 28))]++;
      entry += read<uint32_t>(bytes, entry + 4) + read<uint64_t>(bytes, entry + 8);
    }
  }
  return found;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "fatbin_test LIBRARY ARCHITECTURE...\n");
    return 2;
  }
  std::ifstream file(argv[1], std::ios::binary);
  std::vector<char> bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  std::map<std::string, int> found = entries_of(bytes);
  for (const auto& entry : found) std::printf("%s: %d\n", entry.first.c_str(), entry.second);
  int missing = 0;
  for (int i = 2; i < argc; i++) {
    // Two files of kernels, each with code for every architecture.
    if (found[argv[i]] < 2) {
      std::fprintf(stderr, "%s holds no complete code for %s\n", argv[1], argv[i]);
      missing = 1;
    }
  }
  return missing;
}
