package org.lora4j.serve;

import java.nio.file.Path;

/**
 * An adapter the registry knows.
 *
 * @param name the name requests use
 * @param version counts the weights the name has had, from 1
 * @param path the folder with its files
 */
public record AdapterEntry(String name, long version, Path path) {}
