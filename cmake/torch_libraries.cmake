# The libraries of an installed torch, for this build and for projects that use what it installs: `bucket_moo::torch`.
#
# Not find_package(Torch): with a CUDA build of torch it demands a CUDA toolkit, and it sets flags of its own. What we
# link to is four libraries, the same in every build of torch.

# `root`: where torch's folders lib and include are
function(bucket_moo_add_torch_libraries root)
  foreach(_name c10 torch_cpu torch torch_python)
    find_library(BUCKET_MOO_${_name}_LIBRARY ${_name} REQUIRED PATHS "${root}/lib" NO_DEFAULT_PATH)
    add_library(bucket_moo_torch_${_name} SHARED IMPORTED GLOBAL)
    set_target_properties(bucket_moo_torch_${_name} PROPERTIES
      IMPORTED_LOCATION "${BUCKET_MOO_${_name}_LIBRARY}"
      INTERFACE_INCLUDE_DIRECTORIES "${root}/include;${root}/include/torch/csrc/api/include")
  endforeach()
  add_library(bucket_moo::torch INTERFACE IMPORTED GLOBAL)
  set_target_properties(bucket_moo::torch PROPERTIES
    INTERFACE_LINK_LIBRARIES "bucket_moo_torch_c10;bucket_moo_torch_torch_cpu;bucket_moo_torch_torch"
    INTERFACE_COMPILE_DEFINITIONS "USE_DISTRIBUTED;USE_C10D_GLOO;USE_RPC;USE_TENSORPIPE") # as torch itself is compiled
endfunction()

# Those of the torch that Python_EXECUTABLE imports, which must be of the minor version `minor`. `problem`: set to what
# is wrong, or empty.
function(bucket_moo_find_torch_libraries minor problem)
  set(${problem} "" PARENT_SCOPE)
  if(TARGET bucket_moo::torch)
    return()
  endif()
  set(_ask "import os, torch; print(os.path.dirname(torch.__file__), torch.__version__, sep=';', end='')")
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c "${_ask}"
    OUTPUT_VARIABLE _facts RESULT_VARIABLE _failed ERROR_QUIET)
  if(_failed)
    set(${problem} "bucket_moo::c10d needs torch ${minor}; ${Python_EXECUTABLE} has none (set Python_EXECUTABLE)"
      PARENT_SCOPE)
    return()
  endif()
  list(GET _facts 0 _root)
  list(GET _facts 1 _version)
  if(NOT _version MATCHES "^${minor}\\.")
    set(${problem} "bucket_moo::c10d was built with torch ${minor}; ${Python_EXECUTABLE} has ${_version}" PARENT_SCOPE)
    return()
  endif()
  bucket_moo_add_torch_libraries("${_root}")
endfunction()
