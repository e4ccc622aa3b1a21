package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A shape is one Pod manifest. Its first comment lines may hold
//
//	# settle: phase=Running ready=true        conditions that must all hold before the pod is recorded
//	# kubelet: skip <reason>                  the real kubelet cannot run it as a static pod
//	# output: app side                        containers whose output is recorded: that of their first run
//
// Conditions: phase, ready (condition Ready), restarts (of any container, at least), waiting (reason of any
// container), exited (a container's exit code), reason (of the pod), backoff (restarts of a container that has ended
// and waits for its next start), event (reason of an event), after (seconds since the manifest was laid down).
type shape struct {
	// Of the file, and of the pod: the same but for names that are too long for a file's.
	name, pod string
	skip      string
	text      []byte
	settle    map[string]string
	output    []string
}

var podName = regexp.MustCompile(`(?m)^  name: (\S+)$`)

func readShapes(dir, only string) ([]shape, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil {
		return nil, err
	}
	slices.Sort(files)
	var shapes []shape
	for _, file := range files {
		s := shape{name: strings.TrimSuffix(filepath.Base(file), ".yaml"), settle: map[string]string{}}
		if only != "" && !slices.Contains(strings.Split(only, ","), s.name) {
			continue
		}
		if s.text, err = os.ReadFile(file); err != nil {
			return nil, err
		}
		s.pod = s.name
		if found := podName.FindSubmatch(s.text); found != nil {
			s.pod = string(found[1])
		}
		for _, line := range bytes.Split(s.text, []byte("\n")) {
			text := string(line)
			if rest, ok := strings.CutPrefix(text, "# kubelet: skip "); ok {
				s.skip = rest
			}
			if rest, ok := strings.CutPrefix(text, "# output: "); ok {
				s.output = strings.Fields(rest)
			}
			if rest, ok := strings.CutPrefix(text, "# settle: "); ok {
				for _, word := range strings.Fields(rest) {
					key, value, _ := strings.Cut(word, "=")
					s.settle[key] = value
				}
			}
		}
		if s.skip == "" && len(s.settle) == 0 {
			return nil, fmt.Errorf("%s: no settle line", file)
		}
		shapes = append(shapes, s)
	}
	if len(shapes) == 0 {
		return nil, fmt.Errorf("no shapes in %s", dir)
	}
	return shapes, nil
}

func (s shape) settled(p pod, events []event, age time.Duration) bool {
	all := append(slices.Clone(p.Status.InitContainerStatuses), p.Status.ContainerStatuses...)
	holds := func(key, value string) bool {
		switch key {
		case "phase":
			return p.Status.Phase == value
		case "ready":
			i := slices.IndexFunc(p.Status.Conditions, func(c condition) bool { return c.Type == "Ready" })
			return i >= 0 && p.Status.Conditions[i].Status == map[string]string{"true": "True", "false": "False"}[value]
		case "restarts":
			n, err := strconv.Atoi(value)
			return err == nil && slices.ContainsFunc(all, func(c containerStatus) bool { return c.RestartCount >= n })
		case "waiting":
			return slices.ContainsFunc(all, func(c containerStatus) bool {
				return c.State.Waiting != nil && c.State.Waiting.Reason == value
			})
		case "exited":
			n, err := strconv.Atoi(value)
			return err == nil && slices.ContainsFunc(all, func(c containerStatus) bool {
				return c.State.Terminated != nil && c.State.Terminated.ExitCode == n
			})
		case "backoff":
			n, err := strconv.Atoi(value)
			return err == nil && slices.ContainsFunc(all, func(c containerStatus) bool {
				return c.RestartCount >= n && c.State.Running == nil
			})
		case "event":
			return slices.ContainsFunc(events, func(e event) bool { return e.Reason == value })
		case "after":
			n, err := strconv.Atoi(value)
			return err == nil && age >= time.Duration(n)*time.Second
		case "reason":
			return p.Status.Reason == value
		}
		return false
	}
	for key, value := range s.settle {
		if !holds(key, value) {
			return false
		}
	}
	return true
}

// endsByChance says whether it is chance what is under way when the manifest is removed.
func (s shape) endsByChance() bool {
	for _, key := range []string{"backoff", "restarts", "waiting"} {
		if _, ok := s.settle[key]; ok {
			return true
		}
	}
	return false
}

func skipped(shapes []shape) (n int) {
	for _, s := range shapes {
		if s.skip != "" {
			n++
		}
	}
	return n
}
