package main

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

type specRecording struct {
	Containers map[string]containerRecording `json:"containers"`
	// Of the sandbox; null where none was made.
	Sysctls map[string]string `json:"sysctls"`
}

// containerRecording holds what the kubelet asked for and what the CRI plugin made of it.
type containerRecording struct {
	Image   string          `json:"image"`
	Command []string        `json:"command"`
	Args    []string        `json:"args"`
	Env     [][2]string     `json:"env"`
	Mounts  []criMount      `json:"mounts"`
	Spec    json.RawMessage `json:"spec"`
}

var (
	procNamespace  = regexp.MustCompile(`/proc/[0-9]+/ns/`)
	terminationLog = regexp.MustCompile(`(/containers/[a-z0-9.-]+/)[0-9a-f]{8}"`)
	imageVolume    = regexp.MustCompile(`/volumes/[0-9a-f]{64}"`)
)

func writeRecording(ctx context.Context, o options, c *containerd, s shape, p pod) error {
	m, err := c.madeOf(ctx, p.Metadata.UID)
	if err != nil {
		return err
	}
	spec := specRecording{Containers: map[string]containerRecording{}, Sysctls: m.sysctls}
	for name, r := range m.records {
		request := m.requests[name].Metadata
		out := containerRecording{Image: "", Command: request.Config.Command, Args: request.Config.Args, Mounts: request.Config.Mounts, Spec: r.Spec}
		out.Image = r.Image
		for _, e := range request.Config.Envs {
			out.Env = append(out.Env, [2]string{e.Key, e.Value})
		}
		if err := sortEnv(&out); err != nil {
			return err
		}
		text, err := json.Marshal(out)
		if err != nil {
			return err
		}
		normal := normalise(string(text), request.ID, request.SandboxID, p.Metadata.UID)
		var back containerRecording
		if err := json.Unmarshal([]byte(normal), &back); err != nil {
			return err
		}
		spec.Containers[name] = back
	}
	// A container that the kubelet refused to make has no spec; that is part of the recording.
	if err := writeJSON(filepath.Join(o.golden, "spec", s.name+".json"), spec); err != nil {
		return err
	}
	status, err := json.Marshal(p.Status)
	if err != nil {
		return err
	}
	var normal podStatus
	text := strings.ReplaceAll(string(status), p.Metadata.UID, "$UID")
	if err := json.Unmarshal([]byte(text), &normal); err != nil {
		return err
	}
	if _, ok := s.settle["backoff"]; ok {
		for _, list := range [][]containerStatus{normal.InitContainerStatuses, normal.ContainerStatuses} {
			for i := range list {
				list[i].asBackingOff()
			}
		}
	}
	return writeJSON(filepath.Join(o.golden, "status", s.name+".json"), normal)
}

// asBackingOff turns an ended container that is to be started again into the form that the kubelet gives it at its
// next sync; whether that comes before or after the recorder's look is chance.
func (c *containerStatus) asBackingOff() {
	if c.RestartCount > 0 && c.State.Terminated != nil {
		c.LastState = state{Terminated: c.State.Terminated}
		c.State = state{Waiting: &waiting{Reason: "CrashLoopBackOff"}}
	}
}

// sortEnv brings the pod's variables into one order: the kubelet keeps them in a map.
func sortEnv(c *containerRecording) error {
	slices.SortFunc(c.Env, func(a, b [2]string) int { return strings.Compare(a[0], b[0]) })
	var spec map[string]any
	if err := json.Unmarshal(c.Spec, &spec); err != nil {
		return err
	}
	process, _ := spec["process"].(map[string]any)
	env, _ := process["env"].([]any)
	ofPod := func(entry any) bool {
		name, value, _ := strings.Cut(entry.(string), "=")
		return slices.Contains(c.Env, [2]string{name, value})
	}
	var places []int
	var entries []string
	defaults := true
	for i, entry := range env {
		name, _, _ := strings.Cut(entry.(string), "=")
		defaults = defaults && slices.Contains([]string{"PATH", "TERM", "HOSTNAME"}, name)
		// A variable that replaces a default one stays in its place.
		if !defaults && ofPod(entry) {
			places, entries = append(places, i), append(entries, entry.(string))
		}
	}
	slices.SortFunc(entries, func(a, b string) int {
		left, _, _ := strings.Cut(a, "=")
		right, _, _ := strings.Cut(b, "=")
		return strings.Compare(left, right)
	})
	for i, place := range places {
		env[place] = entries[i]
	}
	text, err := json.Marshal(spec)
	c.Spec = text
	return err
}

// normalise takes out what differs from run to run.
func normalise(text, id, sandbox, uid string) string {
	text = strings.NewReplacer(id, "$ID", sandbox, "$SANDBOX", uid, "$UID", root, "/ROOT",
		fmt.Sprintf("/%s/kubepods", cgroup), "/KUBEPODS").Replace(text)
	text = procNamespace.ReplaceAllString(text, "/NS/")
	text = terminationLog.ReplaceAllString(text, `${1}$$LOG"`)
	return imageVolume.ReplaceAllString(text, `/volumes/$$VOLUME"`)
}
