#include "c_api/boundary.hpp"

#include <exception>
#include <new>

#include "collective/agreed_error.hpp"

namespace bucket_moo::c_api {
namespace {

thread_local std::string kept_text;
thread_local const char* last_text = "";

}  // namespace

int keep_error(int error, const char* text) noexcept {
  try {
    kept_text = text;
    last_text = kept_text.c_str();
  } catch (const std::bad_alloc&) {
    last_text = "bucket_moo: there is no memory left, not even for what went wrong";
  }
  return error;
}

int keep_current_error() noexcept {
  try {
    throw;
  } catch (const AgreedError& error) {
    return keep_error(BUCKET_MOO_DISAGREEMENT, error.what());
  } catch (const std::invalid_argument& error) {
    return keep_error(BUCKET_MOO_INVALID_ARGUMENT, error.what());
  } catch (const TransportFailed& error) {
    return keep_error(BUCKET_MOO_TRANSPORT_FAILED, error.what());
  } catch (const std::bad_alloc&) {
    return keep_error(BUCKET_MOO_OUT_OF_MEMORY, "bucket_moo: there is no memory left");
  } catch (const std::exception& error) {
    return keep_error(BUCKET_MOO_INTERNAL_ERROR, error.what());
  } catch (...) {
    return keep_error(BUCKET_MOO_INTERNAL_ERROR, "bucket_moo: an exception that is none of the standard library's");
  }
}

}  // namespace bucket_moo::c_api

const char* bucket_moo_last_error() { return bucket_moo::c_api::last_text; }
