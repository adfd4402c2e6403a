package main

import (
	"context"
	"fmt"
	"hash/fnv"
	"iter"
	"math"
	"math/rand/v2"
	"strings"
	"time"
)

// A Sensor is a kind of sensor: what it measures, and what is an anomaly.
type Sensor struct {
	Name, Unit string
	Low, High  float64 // all values are between these, inclusive
	Limit      float64 // a value above it is an anomaly
}

func (s Sensor) String() string { return s.Name }

// Sensors returns every kind there is.
func Sensors() []Sensor {
	return []Sensor{
		{"temp", "°C", 18, 35, 30},
		{"humidity", "%", 30, 80, 70},
		{"pressure", "hPa", 990, 1030, 1020},
	}
}

// SensorNamed finds a kind; its error says which there are.
func SensorNamed(name string) (Sensor, error) {
	var known []string
	for _, sensor := range Sensors() {
		if sensor.Name == name {
			return sensor, nil
		}
		known = append(known, sensor.Name)
	}
	return Sensor{}, fmt.Errorf("want one of %s", strings.Join(known, ", "))
}

// kind is what the sensor behind a ref measures, as its name has it.
func kind(sensor SensorRef) string {
	return strings.TrimPrefix(sensor.Address().Name, sensorPrefix)
}

// Alert returns what is to be said of a reading, if anything is.
func (r SensorReading) Alert() (alert Alert, anomaly bool) {
	sensor, err := SensorNamed(r.Sensor)
	return Alert{r, sensor.Limit}, err == nil && r.Value > sensor.Limit
}

// String is a reading in columns, with an anomaly marked.
func (r SensorReading) String() string {
	mark := ' '
	if _, anomaly := r.Alert(); anomaly {
		mark = '!'
	}
	return fmt.Sprintf("%-8s %4d %c %7.2f %s", r.Sensor, r.Seq, mark, r.Value, r.Unit)
}

func (a Alert) String() string {
	return fmt.Sprintf("%v is above %v", a.Reading, a.Limit)
}

// newRandom gives each use of a seed numbers of its own, or all sensors with
// the same seed would rise and fall together.
func newRandom(seed uint64, use string) *rand.Rand {
	hash := fnv.New64a()
	hash.Write([]byte(use))
	return rand.New(rand.NewPCG(seed, hash.Sum64()))
}

// measure yields readings: a random walk that turns back at the sensor's bounds.
func measure(sensor Sensor, readings int, seed uint64) iter.Seq[SensorReading] {
	return func(yield func(SensorReading) bool) {
		random := newRandom(seed, sensor.Name)
		span := sensor.High - sensor.Low
		value := sensor.Low + span*random.Float64()
		for seq := 1; seq <= readings; seq++ {
			// Rounded here, so that what is compared with the limit is what is shown.
			if !yield(SensorReading{sensor.Name, seq, math.Round(value*100) / 100, sensor.Unit}) {
				return
			}
			value += span * (random.Float64() - 0.5)
			if value > sensor.High {
				value = 2*sensor.High - value
			} else if value < sensor.Low {
				value = 2*sensor.Low - value
			}
		}
	}
}

// paced pauses before each reading for the interval, more or less: up to a
// fifth of it either way. It ends when the readings do, or ctx.
func paced(ctx context.Context, readings iter.Seq[SensorReading], interval time.Duration, random *rand.Rand) iter.Seq[SensorReading] {
	return func(yield func(SensorReading) bool) {
		for reading := range readings {
			varied := time.Duration(float64(interval) * (0.8 + 0.4*random.Float64()))
			if !pause(ctx, varied) || !yield(reading) {
				return
			}
		}
	}
}

// measure yields the readings of a node's sensor, as they come.
func (c nodeConfig) measure(ctx context.Context) iter.Seq[SensorReading] {
	return paced(ctx, measure(c.sensor, c.readings, c.random), c.interval, newRandom(c.random, "pauses of "+c.sensor.Name))
}

// String is what a node has to offer.
func (c nodeConfig) String() string {
	if c.monitor {
		return "the sensor " + c.sensor.Name + ", and the monitor"
	}
	return "the sensor " + c.sensor.Name
}

// pause says whether ctx has let it wait.
func pause(ctx context.Context, d time.Duration) bool {
	if d > 0 {
		select {
		case <-time.After(d):
		case <-ctx.Done():
		}
	}
	return ctx.Err() == nil
}
