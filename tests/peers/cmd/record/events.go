package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// event is one thing that the kubelet told about a pod.
type event struct {
	Type      string `json:"type"`
	Reason    string `json:"reason"`
	FieldPath string `json:"fieldPath,omitempty"`
	Message   string `json:"message"`
}

// eventsRecording holds the events of a pod's life, each once, by container and then in the order in which they came
// first.
type eventsRecording struct {
	// Until the status was settled and the kubelet had a moment more.
	Life []event `json:"life"`
	// Of its end, from the removal of the manifest until the pod was gone; none where it is chance what ran then.
	End []event `json:"end"`
}

// eventLog follows the kubelet's log, into which it writes every event: without an API server there is no other place.
type eventLog struct {
	offset int64
	// By the pod's name.
	events map[string][]event
}

// read takes in what has been written since the last call.
func (l *eventLog) read() error {
	file, err := os.Open(filepath.Join(root, "kubelet.log"))
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := file.Seek(l.offset, 0); err != nil {
		return err
	}
	lines := bufio.NewReaderSize(file, 1<<16)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return nil // the end, or a line that is still being written
		}
		l.offset += int64(len(line))
		if !bytes.Contains(line, []byte(`"Event occurred"`)) {
			continue
		}
		var entry struct {
			Msg    string `json:"msg"`
			Kind   string `json:"kind"`
			Object struct {
				Name string `json:"name"`
			} `json:"object"`
			event
		}
		if json.Unmarshal(line, &entry) != nil || entry.Msg != "Event occurred" || entry.Kind != "Pod" {
			continue
		}
		l.events[entry.Object.Name] = append(l.events[entry.Object.Name], entry.event)
	}
}

// distinct returns the events of a pod from a certain one on, each once, without what differs from run to run.
func (l *eventLog) distinct(p pod, from int) []event {
	out, seen := []event{}, map[event]bool{}
	all := l.events[p.Metadata.Name]
	for _, e := range all[min(from, len(all)):] {
		e.Message = plainText(e.Message, p)
		if !seen[e] {
			seen[e] = true
			out = append(out, e)
		}
	}
	// How the events of one container lie between those of another is chance.
	slices.SortStableFunc(out, func(a, b event) int { return strings.Compare(a.FieldPath, b.FieldPath) })
	return out
}

// ofTheEnd keeps what is told about the end of a pod: other events then are of what was under way.
func ofTheEnd(events []event) []event {
	return slices.DeleteFunc(events, func(e event) bool {
		return !slices.Contains([]string{"Killing", "FailedPreStopHook", "FailedKillPod"}, e.Reason)
	})
}

var (
	addresses = regexp.MustCompile(`10\.245\.77\.[0-9]+`)
	digests   = regexp.MustCompile(`[0-9a-f]{64}`)
	pulled    = regexp.MustCompile(`in [0-9.]+m?s \([0-9.]+m?s including waiting\)\. Image size: [0-9]+ bytes`)
	// Numbers of processes and open files, of memory in use and of memory that is lacking.
	chance = regexp.MustCompile(`(pid=|/fd/|/proc/|usage: |q: )[0-9]+`)
)

// plainText takes out of a text about a pod what differs from run to run. tests/node/tests/parity does the same.
func plainText(text string, p pod) string {
	text = strings.NewReplacer(p.Metadata.UID, "$UID", "/"+cgroup+"/kubepods", "/KUBEPODS", root, "/ROOT", nodeName, "$NODE").Replace(text)
	text = pulled.ReplaceAllString(text, "in $$T ($$T including waiting). Image size: $$N bytes")
	text = chance.ReplaceAllString(text, "${1}$$N")
	text = digests.ReplaceAllString(text, "$$DIGEST")
	return addresses.ReplaceAllStringFunc(text, standIn)
}

func standIn(address string) string {
	if address == hostAddress {
		return "$HOST"
	}
	return "$IP"
}

// outputOf reads what the first run of a container wrote: by stream, each line with the mark of a whole (F) or a
// partial (P) one.
func outputOf(p pod, container string) ([]string, error) {
	dir := filepath.Join(root, "logs", "default_"+p.Metadata.Name+"_"+p.Metadata.UID, container)
	text, err := os.ReadFile(filepath.Join(dir, "0.log"))
	if err != nil {
		return nil, err
	}
	streams := map[string][]string{}
	for line := range strings.SplitSeq(strings.TrimSuffix(string(text), "\n"), "\n") {
		_, rest, _ := strings.Cut(line, " ")
		stream, _, _ := strings.Cut(rest, " ")
		streams[stream] = append(streams[stream], plainText(rest, p))
	}
	return append(streams["stderr"], streams["stdout"]...), nil
}
