package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
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

// writeRecording writes down what there is of a settled pod: specs and status.
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
	if err := o.write("spec", s, spec); err != nil {
		return err
	}
	cgroups, err := cgroupsOf(p.Metadata.UID, m)
	if err != nil {
		return err
	}
	if cgroups != nil {
		if err := o.write("cgroup", s, cgroups); err != nil {
			return err
		}
	}
	status, err := json.Marshal(p.Status)
	if err != nil {
		return err
	}
	var normal podStatus
	if err := json.Unmarshal([]byte(plainText(string(status), p)), &normal); err != nil {
		return err
	}
	if _, ok := s.settle["backoff"]; ok {
		for _, list := range [][]containerStatus{normal.InitContainerStatuses, normal.ContainerStatuses} {
			for i := range list {
				list[i].asBackingOff()
			}
		}
	}
	return o.write("status", s, normal)
}

// writeOutput writes down what the containers wrote, where the shape asks for it. It comes to the files a moment after
// the end of a container is told.
func writeOutput(o options, s shape, p pod) error {
	if len(s.output) == 0 {
		return nil
	}
	output := map[string][]string{}
	for _, name := range s.output {
		var err error
		if output[name], err = outputOf(p, name); err != nil {
			return err
		}
	}
	return o.write("output", s, output)
}

// write writes one recording of a shape, where its kind is asked for.
func (o options) write(kind string, s shape, value any) error {
	if o.kinds != "" && !slices.Contains(strings.Split(o.kinds, ","), kind) {
		return nil
	}
	return o.writeFile(filepath.Join(kind, s.name+".json"), value)
}

// writeFile writes one file of the recordings. With a base it writes only what differs from the base's file.
func (o options) writeFile(name string, value any) error {
	path := filepath.Join(o.golden, name)
	if o.base != "" {
		text, err := marshal(value)
		if err != nil {
			return err
		}
		if old, err := os.ReadFile(filepath.Join(o.base, name)); err == nil && bytes.Equal(old, text) {
			err := os.Remove(path)
			if errors.Is(err, os.ErrNotExist) {
				err = nil
			}
			return err
		}
	}
	return writeJSON(path, value)
}

// asBackingOff turns an ended container that is to be started again into the form that the kubelet gives it at its
// next sync; whether that comes before or after the recorder's look is chance.
func (c *containerStatus) asBackingOff() {
	if c.RestartCount > 0 && c.State.Terminated != nil {
		c.LastState = state{Terminated: c.State.Terminated}
		c.State = state{Waiting: &waiting{Reason: "CrashLoopBackOff"}}
	}
	if c.State.Waiting != nil && c.State.Waiting.Reason == "CrashLoopBackOff" {
		c.State.Waiting.Message = ""
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
	text = addresses.ReplaceAllStringFunc(text, standIn)
	text = procNamespace.ReplaceAllString(text, "/NS/")
	text = terminationLog.ReplaceAllString(text, `${1}$$LOG"`)
	return imageVolume.ReplaceAllString(text, `/volumes/$$VOLUME"`)
}
