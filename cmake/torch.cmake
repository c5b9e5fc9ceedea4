# Finds the torch of the interpreter that this build is for and defines `bucket_moo_torch`: what everything that
# shares types with torch's own Python module has to include, link and assert.
find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module)
include(cmake/torch_range.cmake)

# pybind11 keeps one type registry per "internals id". ProcessGroup, Reducer and GradBucket are registered in torch's,
# so our module must be compiled with the same id; only a running interpreter knows which one that is.
set(_probe [[
import ctypes, sys
try:
    import torch
except ImportError as error:
    sys.exit(f"import torch failed: {error}")
api = ctypes.pythonapi
api.PyInterpreterState_Get.restype = ctypes.c_void_p
api.PyInterpreterState_GetDict.restype = ctypes.py_object
api.PyInterpreterState_GetDict.argtypes = [ctypes.c_void_p]
state = api.PyInterpreterState_GetDict(api.PyInterpreterState_Get())
ids = [key for key in state if str(key).startswith("__pybind11_internals_")]
if len(ids) != 1:
    sys.exit(f"expected one pybind11 registry after importing torch {torch.__version__}, found {ids}")
print(torch.utils.cmake_prefix_path, torch.__version__, ids[0], torch.version.cuda or "none", sep=";", end="")
]])
execute_process(
  COMMAND "${Python_EXECUTABLE}" -c "${_probe}"
  OUTPUT_VARIABLE _torch_facts ERROR_VARIABLE _torch_error RESULT_VARIABLE _torch_failed)
if(_torch_failed)
  message(FATAL_ERROR
    "bucket_moo_ext is built against the installed torch, and ${Python_EXECUTABLE} has none that works:\n"
    "  ${_torch_error}\n"
    "Install torch (${BUCKET_MOO_TORCH_FIRST} to ${BUCKET_MOO_TORCH_LAST}) first, then build without isolation: "
    "pip install --no-build-isolation .")
endif()
list(GET _torch_facts 0 _torch_prefix)
list(GET _torch_facts 1 BUCKET_MOO_TORCH_VERSION)
list(GET _torch_facts 2 _torch_pybind11_id)
list(GET _torch_facts 3 _torch_cuda)
bucket_moo_check_torch_range(${BUCKET_MOO_TORCH_VERSION} "${Python_EXECUTABLE}")
message(STATUS "torch ${BUCKET_MOO_TORCH_VERSION} (cuda ${_torch_cuda}), ${_torch_pybind11_id}")

# The pybind11 headers must be the ones torch bundles: releases from elsewhere compile, and then fail at run time.
if(NOT EXISTS "${_torch_prefix}/../../include/pybind11/pybind11.h")
  message(FATAL_ERROR "torch ${BUCKET_MOO_TORCH_VERSION} does not carry its pybind11 headers "
                      "(looked in ${_torch_prefix}/../../include); reinstall torch from an official wheel")
endif()

include(cmake/torch_libraries.cmake)
get_filename_component(_torch_root "${_torch_prefix}/../.." ABSOLUTE)
bucket_moo_add_torch_libraries("${_torch_root}")
add_library(bucket_moo_torch INTERFACE)
target_link_libraries(bucket_moo_torch INTERFACE bucket_moo::torch)
target_compile_definitions(bucket_moo_torch INTERFACE
  BUCKET_MOO_TORCH_VERSION="${BUCKET_MOO_TORCH_VERSION}"
  BUCKET_MOO_TORCH_PYBIND11_ID="${_torch_pybind11_id}")

# torch's headers take longer to parse than our files to compile. g++ alone is trusted to take headers precompiled without
# a target's own definitions: clang refuses them. Of what binds Python there is another set, for those who may know it.
option(BUCKET_MOO_PRECOMPILED_TORCH "Parse torch's headers once in a build (g++)" ON)
function(_bucket_moo_precompile name header)
  file(CONFIGURE OUTPUT ${PROJECT_BINARY_DIR}/${name}.cpp CONTENT "") # written once, compiled once
  add_library(bucket_moo_${name} OBJECT ${PROJECT_BINARY_DIR}/${name}.cpp)
  target_link_libraries(bucket_moo_${name} PRIVATE bucket_moo_torch ${ARGN})
  target_include_directories(bucket_moo_${name} PRIVATE ${PROJECT_SOURCE_DIR}/cpp)
  target_precompile_headers(bucket_moo_${name} PRIVATE ${PROJECT_SOURCE_DIR}/cpp/${header})
endfunction()
if(BUCKET_MOO_PRECOMPILED_TORCH AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  _bucket_moo_precompile(torch_headers torch_types/torch_headers.hpp)
  _bucket_moo_precompile(torch_python_headers bindings/torch_python_headers.hpp
    bucket_moo_torch_torch_python Python::Module)
  set_target_properties(bucket_moo_torch_python_headers PROPERTIES
    CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON) # as what binds Python is compiled
endif()

# For a target whose files include torch; with `python`, torch's headers for Python too.
function(bucket_moo_precompiled_torch target)
  set(_headers bucket_moo_torch_headers)
  if("python" IN_LIST ARGN)
    set(_headers bucket_moo_torch_python_headers)
  endif()
  if(TARGET ${_headers})
    target_precompile_headers(${target} REUSE_FROM ${_headers})
    target_compile_options(${target} PRIVATE -Winvalid-pch)
  endif()
endfunction()
