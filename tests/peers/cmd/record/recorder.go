package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"
)

// recorder runs shapes, some at once, and records each.
type recorder struct {
	o   options
	c   *containerd
	k   *kubelet
	log eventLog
}

// life is a shape under way.
type life struct {
	shape shape
	pod   pod
	begun time.Time
	// Since when its status is recorded, and since when its manifest is gone.
	settled, ending time.Time
	events          eventsRecording
	// How many events there were when the manifest was removed.
	told int
}

const (
	settleTime = 2 * time.Minute
	endTime    = 2 * time.Minute
)

// all runs the shapes and says what went wrong.
func (r *recorder) all(ctx context.Context, shapes []shape) (failed []string) {
	fail := func(format string, args ...any) {
		text := fmt.Sprintf(format, args...)
		log.Print(text)
		failed = append(failed, text)
	}
	running := map[string]*life{}
	for next := 0; next < len(shapes) || len(running) > 0; pause(ctx, 100*time.Millisecond) {
		if ctx.Err() != nil {
			return append(failed, ctx.Err().Error())
		}
		for ; next < len(shapes) && len(running) < r.o.atOnce; next++ {
			s := shapes[next]
			if s.skip != "" {
				continue
			}
			if err := os.WriteFile(r.k.manifest(s), s.text, 0o644); err != nil {
				return append(failed, err.Error())
			}
			running[s.pod] = &life{shape: s, begun: time.Now()}
		}
		pods, err := r.k.pods(ctx)
		if err == nil {
			err = r.log.read()
		}
		if err != nil {
			return append(failed, err.Error())
		}
		for name, l := range running {
			p, there := pods[name]
			done, err := r.step(ctx, l, p, there)
			if err != nil {
				fail("%s: %v", name, err)
			}
			if done {
				delete(running, name)
			}
		}
	}
	return failed
}

// step takes a life further where it can be. It is done when the pod is gone.
func (r *recorder) step(ctx context.Context, l *life, p pod, there bool) (done bool, err error) {
	if there {
		l.pod = p
	}
	switch {
	case l.settled.IsZero():
		if there && l.shape.settled(p, r.log.distinct(p, 0), time.Since(l.begun)) {
			l.settled = time.Now()
			log.Printf("%-28s %s", l.shape.name, p.Status.Phase)
			return false, writeRecording(ctx, r.o, r.c, l.shape, p)
		}
		if time.Since(l.begun) > r.o.slower(settleTime) {
			l.settled, l.ending = time.Now(), time.Now()
			err = fmt.Errorf("not settled: %s", describe(l.pod))
			return false, keep(err, os.Remove(r.k.manifest(l.shape)))
		}
	case l.ending.IsZero():
		if time.Since(l.settled) < eventsLag {
			break
		}
		l.events.Life = r.log.distinct(l.pod, 0)
		l.told = len(r.log.events[l.pod.Metadata.Name])
		l.ending = time.Now()
		err = writeOutput(r.o, l.shape, l.pod)
		return false, keep(err, os.Remove(r.k.manifest(l.shape)))
	case !there:
		// The last events are written a moment after the pod has left the list.
		pause(ctx, 200*time.Millisecond)
		if err := r.log.read(); err != nil {
			return true, err
		}
		l.events.End = []event{}
		if !l.shape.endsByChance() {
			l.events.End = ofTheEnd(r.log.distinct(l.pod, l.told))
		}
		return true, r.o.write("events", l.shape, l.events)
	case time.Since(l.ending) > r.o.slower(endTime):
		return true, fmt.Errorf("does not go away")
	}
	return false, nil
}

// keep returns the first of two errors.
func keep(first, second error) error {
	if first != nil {
		return first
	}
	return second
}
