# Strict warnings for our own targets, and for them alone.
option(BUCKET_MOO_WARNINGS_AS_ERRORS "Treat warnings in bucket_moo's own code as errors" ON)

function(bucket_moo_strict_warnings target)
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANG_AND_ID:CXX,GNU,Clang,AppleClang>:-Wall -Wextra>
    $<$<AND:$<BOOL:${BUCKET_MOO_WARNINGS_AS_ERRORS}>,$<COMPILE_LANG_AND_ID:CXX,GNU,Clang,AppleClang>>:-Werror>)
endfunction()
