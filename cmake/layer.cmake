# Which CUDA kernels a library works with: those of this build, if it has any, or the emulated ones.
add_library(bucket_moo_with_cuda INTERFACE)
target_compile_definitions(bucket_moo_with_cuda INTERFACE
  BUCKET_MOO_CUDA=$<BOOL:${BUCKET_MOO_HAS_CUDA}> BUCKET_MOO_EMULATED_CUDA=0)
if(BUCKET_MOO_HAS_CUDA)
  target_link_libraries(bucket_moo_with_cuda INTERFACE bucket_moo_cuda)
endif()
add_library(bucket_moo_with_cuda_emulated INTERFACE)
target_compile_definitions(bucket_moo_with_cuda_emulated INTERFACE BUCKET_MOO_CUDA=1 BUCKET_MOO_EMULATED_CUDA=1)
target_link_libraries(bucket_moo_with_cuda_emulated INTERFACE bucket_moo_cuda_emulated)

# The libraries, each in its variant where it has one.
function(_bucket_moo_variants result variant)
  set(_found "")
  foreach(_library IN LISTS ARGN)
    if(TARGET ${_library}_${variant})
      list(APPEND _found ${_library}_${variant})
    else()
      list(APPEND _found ${_library})
    endif()
  endforeach()
  set(${result} "${_found}" PARENT_SCOPE)
endfunction()

# bucket_moo_layer(NAME LINK layers... SOURCES files... [CUDA_SOURCES files...] [DEVICE_SOURCES files...])
#
# The library NAME; for tests, NAME_emulated beside it, with emulated CUDA kernels. Most of their files are the same:
#   SOURCES         know nothing of CUDA: compiled once
#   CUDA_SOURCES    look at BUCKET_MOO_CUDA or BUCKET_MOO_EMULATED_CUDA: once for each
#   DEVICE_SOURCES  likewise, and are left out where there are no CUDA kernels
# What it links are such layers, or libraries that know nothing of CUDA.
function(bucket_moo_layer name)
  cmake_parse_arguments(PARSE_ARGV 1 _layer "" "" "LINK;SOURCES;CUDA_SOURCES;DEVICE_SOURCES")
  _bucket_moo_variants(_common common ${_layer_LINK})
  set(_objects "")
  if(_layer_SOURCES)
    set(_objects $<TARGET_OBJECTS:${name}_common>)
    add_library(${name}_common OBJECT ${_layer_SOURCES})
    target_link_libraries(${name}_common PUBLIC ${_common})
    # A file that asks for BUCKET_MOO_CUDA, and is not in CUDA_SOURCES, must not be taken for one without CUDA.
    target_compile_options(${name}_common PRIVATE $<$<COMPILE_LANG_AND_ID:CXX,GNU,Clang,AppleClang>:-Wundef>)
    bucket_moo_strict_warnings(${name}_common)
    bucket_moo_precompiled_torch(${name}_common)
  endif()

  add_library(${name} STATIC ${_objects} ${_layer_CUDA_SOURCES})
  target_link_libraries(${name} PUBLIC ${_layer_LINK} bucket_moo_with_cuda)
  if(BUCKET_MOO_HAS_CUDA)
    target_sources(${name} PRIVATE ${_layer_DEVICE_SOURCES})
  endif()
  bucket_moo_strict_warnings(${name})
  bucket_moo_precompiled_torch(${name})

  if(BUCKET_MOO_TESTS)
    _bucket_moo_variants(_emulated emulated ${_layer_LINK})
    add_library(${name}_emulated STATIC EXCLUDE_FROM_ALL
      ${_objects} ${_layer_CUDA_SOURCES} ${_layer_DEVICE_SOURCES})
    target_link_libraries(${name}_emulated PUBLIC ${_emulated} bucket_moo_with_cuda_emulated)
    bucket_moo_strict_warnings(${name}_emulated)
    bucket_moo_precompiled_torch(${name}_emulated)
  endif()
endfunction()
