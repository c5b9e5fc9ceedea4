# Decides whether the CUDA kernels are built, and for what. Sets BUCKET_MOO_HAS_CUDA; if it is on, the language CUDA is
# enabled and CMAKE_CUDA_ARCHITECTURES is set.
set(BUCKET_MOO_CUDA AUTO CACHE STRING
  "CUDA kernels: AUTO (for the Python extension, if a CUDA compiler is found), ON (always, there must be one), OFF")
set_property(CACHE BUCKET_MOO_CUDA PROPERTY STRINGS AUTO ON OFF)
string(TOUPPER "${BUCKET_MOO_CUDA}" _wanted)
if(NOT _wanted MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "BUCKET_MOO_CUDA must be AUTO, ON or OFF; got '${BUCKET_MOO_CUDA}'")
endif()
set(BUCKET_MOO_HAS_CUDA OFF)
set(BUCKET_MOO_CUDA_COMPILER "")

# Core and kernels alone want no CUDA compiler, whether there is one or not.
if(_wanted STREQUAL AUTO AND NOT BUCKET_MOO_PYTHON)
  set(_wanted OFF)
  message(STATUS "CUDA kernels: none, nothing here uses them (BUCKET_MOO_CUDA=ON makes them all the same)")
endif()

include("${CMAKE_CURRENT_LIST_DIR}/torch_cuda_arch_list.cmake")

# The older toolkits do not know sm_100.
set(_oldest_toolkit 12.8)

if(NOT _wanted STREQUAL OFF)
  if(NOT CMAKE_CUDA_ARCHITECTURES AND NOT "$ENV{CUDAARCHS}" STREQUAL "")
    set(CMAKE_CUDA_ARCHITECTURES "$ENV{CUDAARCHS}")
  elseif(NOT CMAKE_CUDA_ARCHITECTURES AND NOT "$ENV{TORCH_CUDA_ARCH_LIST}" STREQUAL "")
    bucket_moo_read_torch_list("$ENV{TORCH_CUDA_ARCH_LIST}" CMAKE_CUDA_ARCHITECTURES)
  elseif(NOT CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 100) # the last one as PTX too, for what comes after it
  endif()
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS _oldest_toolkit)
      set(_problem "CUDA ${CMAKE_CUDA_COMPILER_VERSION} is older than ${_oldest_toolkit}")
    else()
      if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION) # CMake before 3.25.2 does not know nvcc's C++20
        set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
        set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
      endif()
      find_package(CUDAToolkit REQUIRED)
      set(BUCKET_MOO_HAS_CUDA ON)
      set(BUCKET_MOO_CUDA_COMPILER "${CMAKE_CUDA_COMPILER_ID} ${CMAKE_CUDA_COMPILER_VERSION}")
      message(STATUS "CUDA kernels: ${BUCKET_MOO_CUDA_COMPILER} for ${CMAKE_CUDA_ARCHITECTURES}")
    endif()
  else()
    set(_problem "no CUDA compiler was found (nvcc on the PATH, or CUDACXX)")
  endif()
  if(NOT BUCKET_MOO_HAS_CUDA AND _wanted STREQUAL ON)
    message(FATAL_ERROR "BUCKET_MOO_CUDA=ON, but ${_problem}")
  elseif(NOT BUCKET_MOO_HAS_CUDA)
    message(STATUS "CUDA kernels: none, ${_problem}")
  endif()
endif()
