package org.lora4j.serve.http;

import java.util.List;

/** Cuts a text at the first of some strings, and holds back what may be the beginning of one. */
final class StopText {
    private final List<String> stops;
    private final StringBuilder held = new StringBuilder();
    private boolean stopped;

    StopText(List<String> stops) {
        this.stops = stops;
    }

    /** Whether one of the strings came. */
    boolean stopped() {
        return stopped;
    }

    /** What may be told of the text so far. */
    String add(String text) {
        held.append(text);
        int first = -1;
        int hold = 0;
        for (String stop : stops) {
            int at = held.indexOf(stop);
            if (at >= 0 && (first < 0 || at < first)) {
                first = at;
            }
            hold = Math.max(hold, overlap(stop));
        }
        if (first >= 0) {
            stopped = true;
            held.setLength(first);
            return end();
        }
        String told = held.substring(0, held.length() - hold);
        held.delete(0, told.length());
        return told;
    }

    /** How much of the end of the text a string may begin with. */
    private int overlap(String stop) {
        for (int size = Math.min(stop.length() - 1, held.length()); size > 0; size--) {
            if (stop.startsWith(held.substring(held.length() - size))) {
                return size;
            }
        }
        return 0;
    }

    /** What was held back, when no text follows. */
    String end() {
        String rest = held.toString();
        held.setLength(0);
        return rest;
    }
}
