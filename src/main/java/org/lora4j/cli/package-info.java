/** The command line: verbs that parse, call and print. */
@NullMarked
package org.lora4j.cli;

import org.jspecify.annotations.NullMarked;
