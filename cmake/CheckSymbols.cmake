# Fails unless an object file defines one global function and no weak symbol.
execute_process(COMMAND ${NM} --defined-only --extern-only --demangle ${OBJECT} OUTPUT_VARIABLE symbols RESULT_VARIABLE code)
string(REGEX MATCHALL "[^\n]+" lines "${symbols}")
list(LENGTH lines count)
if(NOT code EQUAL 0 OR NOT count EQUAL 1 OR NOT symbols MATCHES " T lora4j::${FUNCTION}\\(\\)")
  message(FATAL_ERROR "${OBJECT} must define ${FUNCTION}() alone, but defines:\n${symbols}")
endif()
