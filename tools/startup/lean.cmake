# Read by CMake at the start of llama.cpp's own project. The binding's build asks for llama.cpp's "common" library
# and never loads it: without it, and without the multimodal library, 83 build steps are left of 193.
set(LLAMA_BUILD_COMMON OFF)
