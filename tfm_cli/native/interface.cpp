// The functions of interface.h, compiled once for each instruction set.
#include "interface.h"

#include <string>

namespace {
thread_local std::string last_error;

int32_t not_there() {
  last_error = "not there yet";
  return TFM_DEFECT;
}
}  // namespace

const char* tfm_error(void) { return last_error.c_str(); }
int32_t tfm_model_new(const TfmModelOptions*, TfmModel**) { return not_there(); }
int32_t tfm_model_tensor(TfmModel*, const char*, const float*, int64_t, int64_t) {
  return not_there();
}
int32_t tfm_model_vocabulary(TfmModel*, const int32_t*, int32_t, const int16_t*) {
  return not_there();
}
int32_t tfm_model_finish(TfmModel*) { return not_there(); }
int64_t tfm_model_bytes(const TfmModel*) { return 0; }
void tfm_model_free(TfmModel*) {}
int32_t tfm_workspace_new(TfmWorkspace**) { return not_there(); }
int64_t tfm_workspace_bytes(const TfmWorkspace*) { return 0; }
void tfm_workspace_trim(TfmWorkspace*) {}
void tfm_workspace_free(TfmWorkspace*) {}
void tfm_fail_allocation(int64_t) {}
int64_t tfm_segment_bytes(const TfmModel*, int32_t, int32_t, int32_t) { return 0; }
int32_t tfm_search(const TfmModel* const*, int32_t, TfmWorkspace*, const TfmSearchOptions*,
                   const TfmBatch*, TfmResult*) {
  return not_there();
}
int32_t tfm_force(const TfmModel*, TfmWorkspace*, const TfmBatch*, const int32_t*, const int32_t*,
                  float*, int32_t, float*) {
  return not_there();
}
void tfm_crash_note(const char*) {}
